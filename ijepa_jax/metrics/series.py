"""Curves out of the rows of metrics.jsonl."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

# The smoothed loss averages over this share of the run.
_SMOOTHING = 0.02


def of(
  rows: Sequence[Mapping[str, float]], name: str
) -> tuple[np.ndarray, np.ndarray]:
  """Steps and finite values of one figure."""
  points = [
    (row['step'], row[name])
    for row in rows
    if name in row and math.isfinite(row[name])
  ]
  array = np.array(points, float).reshape(-1, 2)
  return array[:, 0], array[:, 1]


def blocks(rows: Sequence[Mapping[str, float]], figure: str) -> list[str]:
  """Names of a figure that is measured block by block, first to last."""
  prefix = f'{figure}/'
  return sorted({n for row in rows for n in row if n.startswith(prefix)})


def smooth(values: np.ndarray) -> np.ndarray:
  """Centred moving average; the window shrinks towards both ends."""
  n = len(values)
  i = np.arange(n)
  half = np.minimum(int(n * _SMOOTHING / 2), np.minimum(i, n - 1 - i))
  sums = np.concatenate([[0.0], np.cumsum(values)])
  return (sums[i + half + 1] - sums[i - half]) / (2 * half + 1)
