"""Memory, time and network of a training step, before any device is paid."""
