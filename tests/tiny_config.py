"""The defaults as a config file; `tiny.command` sets all else by arguments."""

from ml_collections import ConfigDict

from ijepa_jax.config import fields


def get_config(variant: str = '') -> ConfigDict:
  return fields.variant(fields.defaults(), variant)
