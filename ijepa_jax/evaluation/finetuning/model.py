"""What is fine-tuned: an encoder with a linear classifier on top."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ijepa_jax.evaluation import online
from ijepa_jax.interop.weights import Architecture
from ijepa_jax.models import layers

# MAE's head before fine-tuning (`main_finetune.py`): all classes alike.
_HEAD_STD = 2e-5


class Classifier:
  """Average-pooled features of all patches, and a linear layer.

  Without an encoder the features are the pixels, at most 16 x 16 of them: what
  the same training makes of no encoder at all.

  Attributes:
    depth: blocks of the encoder; 0 without.
    encoder_shapes: a tree like its parameters; None without.
  """

  def __init__(
    self,
    architecture: Architecture | None,
    image_size: int,
    classes: int,
    *,
    dtype: str = 'float32',
    drop_path: float = 0.0,
    constrain: layers.Constrain = layers.identity,
  ):
    """Makes a classifier; its numbers are elsewhere.

    Args:
      architecture: of the encoder, or None for pixels.
      image_size: side of the images in pixels.
      classes: how many there are.
      dtype: of the matrix products.
      drop_path: rate at the last block.
      constrain: pins the sharding of activations.
    """
    self.depth = architecture.size.depth if architecture else 0
    self._classes, self._constrain = classes, constrain
    self._side = min(image_size, online.PIXEL_SIDE)
    self._encoder: nnx.GraphDef | None = None
    self._width = 3 * self._side**2
    self.encoder_shapes: dict | None = None
    if architecture is not None:
      module = architecture.encoder(
        dtype=jnp.dtype(dtype),
        drop_path=drop_path,
        # XLA's CPU backend runs the body of a loop at half the speed.
        unroll=jax.default_backend() == 'cpu',
      )
      self._encoder = nnx.graphdef(module)
      self.encoder_shapes = nnx.to_pure_dict(nnx.state(module))
      self._width = architecture.size.width

  def init(self, encoder: dict | None, key: jax.Array) -> dict[str, Any]:
    """Parameters before the first step.

    Args:
      encoder: those of the encoder; None for pixels.
      key: randomness of the head.
    """
    shape = self._width, self._classes
    kernel = _HEAD_STD * jax.random.normal(key, shape)
    head = {'kernel': kernel, 'bias': jnp.zeros(self._classes)}
    return {'head': head} | ({} if encoder is None else {'encoder': encoder})

  def __call__(
    self, params: dict, images: jax.Array, key: jax.Array | None = None
  ) -> jax.Array:
    """Logits `(B, C)` float32.

    Args:
      params: from `init`, or trained.
      images: normalised, `(B, S, S, 3)`.
      key: randomness of drop path; None turns it off.
    """
    if self._encoder is None:
      shape = len(images), self._side, self._side, 3
      features = jax.image.resize(images, shape, 'linear')
      features = features.reshape(len(images), -1)
    else:
      module = nnx.merge(self._encoder, params['encoder'])
      tokens = module(images, constrain=self._constrain, key=key)
      features = tokens.mean(1)  # (B, D)
    head = params['head']
    return features @ head['kernel'] + head['bias']
