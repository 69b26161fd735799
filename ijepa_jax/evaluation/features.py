"""Pooled features of a frozen encoder, computed on the whole mesh."""

from typing import Any

import jax
import numpy as np

from ijepa_jax import sharding, train_step

# Images per call where the training batch is larger.
_MAX_BATCH = 512


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
    self._batch_size = max(devices, min(batch_size, _MAX_BATCH))
    self._batch_size -= self._batch_size % devices
    self._sharding = sharding.batch_sharding(mesh)

    def encode(encoder: Any, images: jax.Array) -> jax.Array:
      features = learner.encode(encoder, learner.normalise(images))
      return features.mean(1)  # average pooling, (B, D)

    self._encode = jax.jit(encode, out_shardings=sharding.replicated(mesh))

  def __call__(self, encoder: Any, images: np.ndarray) -> np.ndarray:
    """Average-pooled features.

    Args:
      encoder: parameters of an encoder.
      images: `(n, S, S, 3)` uint8, the same on every process.

    Returns:
      `(n, D)` float32, the same on every process.
    """
    features = []
    for start in range(0, len(images), self._batch_size):
      part = images[start : start + self._batch_size]
      rows = np.zeros((self._batch_size, *images.shape[1:]), np.uint8)
      rows[: len(part)] = part
      batch = jax.make_array_from_callback(
        rows.shape, self._sharding, rows.__getitem__
      )
      features.append(np.asarray(self._encode(encoder, batch))[: len(part)])
    return np.concatenate(features)
