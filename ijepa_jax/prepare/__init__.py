"""Images to ArrayRecord shards: `python -m ijepa_jax.prepare SRC DST`."""
