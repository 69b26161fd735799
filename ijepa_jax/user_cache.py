"""Where files are kept that the next start would only have to make again."""

import os


def folder(name: str) -> str:
  """`$XDG_CACHE_HOME/ijepa_jax/NAME`, by default below `~/.cache`."""
  base = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return os.path.join(base, 'ijepa_jax', name)
