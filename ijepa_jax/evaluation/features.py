"""Pooled features of a frozen encoder, computed on the whole mesh."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ijepa_jax import rows, sharding, train_step
from ijepa_jax.evaluation import views
from ijepa_jax.evaluation.online import Inside, LabelledImages, as_vectors

# Images per call where the training batch is larger.
_MAX_BATCH = 512

# Attention weights that a device holds at a time: 256 MiB in float32.
_MAX_WEIGHTS = 2**26

# Views of an image: LiDAR needs several, and each costs an encoding.
VIEWS = 10

# Of how many images: twice the rank there can be, and never more than the
# authors of LiDAR take.
_IMAGES_PER_CHANNEL = 2
_MAX_IMAGES = 1000


class FeatureExtractor:
  """Encodes sets of images in batches of one static shape."""

  def __init__(
    self,
    learner: train_step.Learner,
    mesh: jax.sharding.Mesh,
    batch_size: int,
  ):
    """Makes an extractor.

    Args:
      learner: knows the encoder's structure.
      mesh: where the encoder lives.
      batch_size: the training batch; at most 512 of it are used.
    """
    devices = mesh.devices.size
    size = max(devices, min(batch_size, _MAX_BATCH))
    self._per_device = size // devices
    self.shares = rows.Shares(mesh, self._per_device * devices)
    self._learner = learner
    jit = functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
    self._encode, self._crops, self._by_block = (
      jit(function) for function in (self._pooled, self._views, self._blocks)
    )

  def __call__(self, encoder: Any, images: LabelledImages) -> np.ndarray:
    """Average-pooled features.

    Args:
      encoder: parameters of an encoder.
      images: this process's share is that of `self.shares`.

    Returns:
      `(n, D)` float32 of all n images, the same on every process.
    """
    encode = functools.partial(self._encode, encoder)
    return self.shares.gather(images.images, images.total, encode)

  def inside(self, encoder: Any, images: LabelledImages) -> Inside:
    """Looks into the encoder; costs `VIEWS` + 2 encodings per image.

    Arguments as for a call; of the images the first 2 D are used, at most
    1,000. The same on every process.
    """
    width = encoder['pos_embed'].shape[-1]
    count = min(images.total, _IMAGES_PER_CHANNEL * width, _MAX_IMAGES)
    mine = images.images[: len(self.shares.mine(count))]
    seen, by_block = (
      self.shares.gather(mine, count, functools.partial(function, encoder))
      for function in (self._crops, self._by_block)
    )
    return Inside(seen, by_block[..., 1:], by_block[..., 0])

  def pixels(self, images: LabelledImages) -> np.ndarray:
    """Raw pixels as features, see `online.as_vectors`."""
    return self.shares.gather(as_vectors(images.images), images.total)

  def _pooled(self, encoder: Any, images: jax.Array) -> jax.Array:
    """uint8 images to average-pooled features, `(B, D)`."""
    features = self._learner.encode(encoder, self._learner.normalise(images))
    return features.mean(1)

  def _views(self, encoder: Any, images: jax.Array) -> jax.Array:
    """`(B, VIEWS, D)`."""
    images = self._learner.normalise(images)

    def view(key: jax.Array) -> jax.Array:
      crops = views.random_crops(images, key)
      return self._learner.encode(encoder, crops).mean(1)

    # The same crops at every evaluation.
    keys = jax.random.split(jax.random.key(0), VIEWS)
    return jax.lax.map(view, keys).swapaxes(0, 1)

  def _blocks(self, params: Any, images: jax.Array) -> jax.Array:
    """Entropy and features of each block in one array, `(B, L, 1 + D)`."""
    encoder = self._learner.encoder(params)
    numbers = range(encoder.trunk.depth)
    heads, tokens = encoder.trunk.blocks.heads, len(encoder.pos_embed[...])

    def part(images: jax.Array) -> jax.Array:
      images = self._learner.normalise(images)
      features = encoder.intermediate(images, numbers)
      weights = encoder.attention_weights(images, numbers)
      layers = []
      for number in numbers:
        p = weights[number]  # (b, H, N, N)
        entropy = -(p * jnp.log(jnp.maximum(p, 1e-30))).sum(-1).mean((1, 2))
        share = entropy / math.log(tokens)
        layers.append(
          jnp.concatenate([share[:, None], features[number].mean(1)], axis=1)
        )
      return jnp.stack(layers, axis=1)

    # Attention weights of a whole batch may not fit: a device takes a part of
    # its images at a time, of a size that divides them.
    most = max(1, _MAX_WEIGHTS // (heads * tokens**2))
    count = next(
      count
      for count in range(1, self._per_device + 1)
      if self._per_device % count == 0 and self._per_device // count <= most
    )
    parts = images.reshape(-1, count, *images.shape[1:]).swapaxes(0, 1)
    done = jax.lax.map(part, parts)  # (count, B / count, L, 1 + D)
    return done.swapaxes(0, 1).reshape(len(images), *done.shape[2:])
