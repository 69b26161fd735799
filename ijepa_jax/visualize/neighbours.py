"""The nearest of many features."""

import numpy as np

_BLOCK = 2**24  # similarities that are held at once


def nearest(
  queries: np.ndarray, bank: np.ndarray, count: int = 1
) -> np.ndarray:
  """Rows of `bank` with the largest cosine to each query.

  Targets have one length (they pass a layer norm), so among them this is also
  the nearest by the distance that the loss is made of.

  Args:
    queries: `(q, D)`.
    bank: `(m, D)`.
    count: how many, at most m.

  Returns:
    `(q, count)`, the nearest first; of equals the one with the lowest number.
  """
  norms = np.linalg.norm(bank, axis=1)
  count = min(count, len(bank))
  rows = max(1, _BLOCK // len(bank))
  found = []
  for start in range(0, len(queries), rows):
    alike = queries[start : start + rows] @ bank.T
    alike /= np.maximum(norms, 1e-12)
    if count == 1:  # sorting would take a hundred times as long
      found.append(alike.argmax(1)[:, None])
    else:
      found.append(np.argsort(-alike, axis=1, kind='stable')[:, :count])
  return np.concatenate(found)
