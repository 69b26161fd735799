"""I-JEPA pre-training in JAX and Flax (Assran et al., CVPR 2023)."""

__version__ = '0.1.0'

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from ijepa_jax.encoder import Encoder, load_encoder

__all__ = ['Encoder', 'load_encoder']


def __getattr__(name: str) -> Any:
  """Imports the encoder when it is asked for: JAX takes seconds."""
  if name in __all__:
    from ijepa_jax import encoder

    return getattr(encoder, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
