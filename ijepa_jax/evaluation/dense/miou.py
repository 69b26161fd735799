"""Mean intersection over union, from counts that are kept by image."""

from typing import NamedTuple

import numpy as np

from ijepa_jax.data import dense


class Counts(NamedTuple):
  """Pixels of n images, by class; those without a class are left out.

  Attributes:
    both: (n, C) pixels that are of the class and said to be.
    truth: (n, C) that are of the class.
    guess: (n, C) that are said to be.
  """

  both: np.ndarray
  truth: np.ndarray
  guess: np.ndarray


# Rows of `Counts`, of one image: each (C,).
OfImage = tuple[np.ndarray, np.ndarray, np.ndarray]


def count(truth: np.ndarray, guess: np.ndarray, classes: int) -> OfImage:
  """Counts of one image, each (C,).

  Args:
    truth: (H, W) classes, or `dense.IGNORED`.
    guess: (H, W) classes.
    classes: C.
  """
  known = truth != dense.IGNORED
  truth, guess = truth[known], guess[known]

  def pixels(values: np.ndarray) -> np.ndarray:
    return np.bincount(values, minlength=classes)

  return pixels(truth[truth == guess]), pixels(truth), pixels(guess)


def stack(counts: list[OfImage]) -> Counts:
  """The counts of images, one after the other."""
  return Counts(*(np.stack(column) for column in zip(*counts)))


def by_class(counts: Counts, rows: np.ndarray | None = None) -> np.ndarray:
  """Intersection over union (C,) over all images together.

  Args:
    counts: of n images.
    rows: which of them, may repeat; None: all.

  Returns:
    NaN for a class that is neither there nor guessed.
  """
  chosen = (column if rows is None else column[rows] for column in counts)
  both, truth, guess = (column.sum(0) for column in chosen)
  union = truth + guess - both
  return np.where(union > 0, both / np.maximum(union, 1), np.nan)


def mean(counts: Counts, rows: np.ndarray | None = None) -> float:
  """Mean over the classes that are there or guessed; NaN if there are none."""
  found = by_class(counts, rows)
  found = found[~np.isnan(found)]
  return float(found.mean()) if len(found) else float('nan')
