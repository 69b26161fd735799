"""Frozen tokens of patches, standardised as they are read."""

import dataclasses

import numpy as np

from ijepa_jax.evaluation import moments
from ijepa_jax.evaluation.tasks.context import Context

# Images whose mean and deviation stand for all.
_SAMPLE = 1024
_SEED = 0x64656E73


@dataclasses.dataclass(frozen=True)
class Patches:
  """Tokens of the images of a split, standardised.

  Attributes:
    rows: (n, N, D), mapped from disk.
    mean: (D,) of train's tokens.
    scale: (D,) one over their standard deviation.
    grid: patches per side.
  """

  rows: np.ndarray
  mean: np.ndarray
  scale: np.ndarray
  grid: int

  def __len__(self) -> int:
    return len(self.rows)

  def batch(self, rows: np.ndarray) -> np.ndarray:
    """(b, g, g, D) float32 of the images numbered `rows`."""
    tokens = (self.rows[rows] - self.mean) * self.scale
    return tokens.reshape(len(rows), self.grid, self.grid, -1)


def load(context: Context) -> tuple[Patches, Patches]:
  """Last-layer tokens of train and test, of whole images."""
  train = context.tokens('train', whole=True)
  test = context.tokens('test', whole=True)
  # By channel, over all patches of some images.
  rng = np.random.default_rng((_SEED, context.seed))
  some = np.sort(rng.permutation(len(train))[:_SAMPLE])
  sample = train[some].reshape(-1, train.shape[-1])
  mean, scale = moments.of(sample, np.arange(len(sample)))
  grid = context.grid
  return Patches(train, mean, scale, grid), Patches(test, mean, scale, grid)
