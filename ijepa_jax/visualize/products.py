"""Sums of products of features, exact and without a float64 copy of them."""

import numpy as np

_ROWS = 4096


def products(rows: np.ndarray) -> np.ndarray:
  """`rows.T @ rows` in float64, for `(n, D)` of any float type."""
  total = np.zeros((rows.shape[1], rows.shape[1]))
  for start in range(0, len(rows), _ROWS):
    block = rows[start : start + _ROWS].astype(np.float64)
    total += block.T @ block
  return total
