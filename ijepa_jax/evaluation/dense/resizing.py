"""Resizing of maps along an axis, as a matrix or as indices."""

import numpy as np


def bilinear(old: int, new: int) -> np.ndarray:
  """Bilinear interpolation along one axis, `(new, old)` float32.

  Half-pixel centres, edges clamped: PyTorch's `interpolate(mode='bilinear',
  align_corners=False)`, and `jax.image.resize` where it enlarges.
  """
  place = (np.arange(new) + 0.5) * old / new - 0.5
  place = np.clip(place, 0, old - 1)
  first = np.minimum(place.astype(int), max(old - 2, 0))
  share = place - first
  matrix = np.zeros((new, old), np.float32)
  rows = np.arange(new)
  matrix[rows, first] += 1 - share
  matrix[rows, np.minimum(first + 1, old - 1)] += share
  return matrix


def nearest(old: int, new: int) -> np.ndarray:
  """For each of `new` pixels the one of `old` at its centre, `(new,)`."""
  return ((np.arange(new) + 0.5) * old / new).astype(int)


def upsample(logits: np.ndarray, height: int, width: int) -> np.ndarray:
  """Resizes `(g, g, C)` bilinearly to `(height, width, C)`."""
  rows = bilinear(logits.shape[0], height)
  columns = bilinear(logits.shape[1], width)
  return np.einsum('hy,wx,yxc->hwc', rows, columns, logits, optimize=True)
