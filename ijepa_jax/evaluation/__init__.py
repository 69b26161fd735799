"""How good frozen features are: probes and health figures, in numpy."""
