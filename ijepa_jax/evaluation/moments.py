"""Mean and deviation of features on disk, for heads that normalise."""

from typing import NamedTuple

import numpy as np

_BLOCK_ROWS = 4096


class Moments(NamedTuple):
  """Of features: what a BatchNorm without scale and shift comes to.

  Attributes:
    mean: `(...)` float32.
    scale: `(...)` float32, one over the deviation; 0 for what is constant.
  """

  mean: np.ndarray
  scale: np.ndarray


def of(features: np.ndarray, rows: np.ndarray) -> Moments:
  """Moments over the first axis.

  Args:
    features: `(n, ...)`, which may be mapped from disk.
    rows: which of the n, rising.
  """
  blocks = [
    rows[start : start + _BLOCK_ROWS]
    for start in range(0, len(rows), _BLOCK_ROWS)
  ]
  mean = sum(features[b].sum(0, dtype=np.float64) for b in blocks) / len(rows)
  square = sum(((features[b] - mean) ** 2).sum(0) for b in blocks)
  deviation = np.sqrt(square / len(rows))
  # What varies less than float32 resolves is a constant.
  alive = deviation > 1e-6 * np.abs(mean)
  scale = np.where(alive, 1.0, 0.0) / np.where(alive, deviation, 1.0)
  return Moments(mean.astype(np.float32), scale.astype(np.float32))
