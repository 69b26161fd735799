"""Flax modules: encoder, predictor, and the table of sizes."""
