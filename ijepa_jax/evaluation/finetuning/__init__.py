"""Fine-tuning of the whole encoder on labelled images."""
