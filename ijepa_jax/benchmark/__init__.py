"""Speed, measured: step, input, masks, start and checkpoints."""
