"""A few labelled images of each class."""

import argparse
import re

import numpy as np

from ijepa_jax import errors


def amounts(text: str) -> tuple[str, ...]:
  """`1%,10%,5` as its parts.

  Raises:
    ArgumentTypeError: one is neither a share nor a number of images; argparse
      makes one line of it.
  """
  parts = tuple(text.split(','))
  for part in parts:
    share = re.fullmatch(r'(\d+(?:\.\d+)?)%', part)
    if share and 0 < float(share[1]) <= 100:
      continue
    if re.fullmatch(r'[1-9]\d*', part):
      continue
    raise argparse.ArgumentTypeError(
      f'{part!r} is neither a share such as 1% nor a number of images per '
      'class such as 5'
    )
  return parts


def draw(y: np.ndarray, amount: str, seed: int) -> np.ndarray:
  """Rows of a few labelled images, rising.

  Args:
    y: (n,) classes.
    amount: '1%' of each class (at least 1 image), or '5' images of each.
    seed: of the choice; for one seed smaller subsets lie in larger ones.

  Raises:
    UserError: a class has fewer images than are wanted.
  """
  rng = np.random.default_rng(seed)
  chosen = []
  for number in np.unique(y):
    rows = rng.permutation(np.flatnonzero(y == number))
    if amount.endswith('%'):
      count = max(1, round(float(amount[:-1]) / 100 * len(rows)))
    else:
      count = int(amount)
    if count > len(rows):
      raise errors.UserError(
        f'--lowshot.subsets={amount}: class {number} has {len(rows)} images in '
        f'train; nearest: {len(rows)}'
      )
    chosen.append(rows[:count])
  return np.sort(np.concatenate(chosen))
