"""Weights in and out: every format to and from our own parameters."""
