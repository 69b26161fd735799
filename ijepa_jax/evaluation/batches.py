"""Batches of features on disk, in bounded chunks, each epoch in a new order."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from ijepa_jax.evaluation.sweep import Chunk

_CHUNK_BYTES = 128 * 2**20


@dataclasses.dataclass(frozen=True)
class Plan:
  """How long heads are trained, and on how many images at a time.

  Attributes:
    batch_size: B.
    per_epoch: steps of an epoch; the rest of its images is left out.
    epochs: how many.
  """

  batch_size: int
  per_epoch: int
  epochs: int

  @property
  def steps(self) -> int:
    """Steps in all."""
    return self.epochs * self.per_epoch


def plan(
  images: int, *, batch_size: int, least_per_epoch: int, epochs: int
) -> Plan:
  """The protocol's batch, or a smaller power of two for small sets.

  Args:
    images: to fit on.
    batch_size: the protocol's.
    least_per_epoch: steps that an epoch should have.
    epochs: how many.
  """
  while batch_size > 1 and images // batch_size < least_per_epoch:
    batch_size //= 2
  return Plan(batch_size, max(1, images // batch_size), epochs)


def chunks(
  features: Callable[[int], np.ndarray],
  labels: np.ndarray,
  rows: np.ndarray,
  plan: Plan,
  *,
  seed: int,
  advance: Callable[[int], None],
) -> Iterator[Chunk]:
  """Batches `{'x': (K, B, ...), 'y': (K, B, ...)}`.

  Args:
    features: epoch -> features `(n, ...)`, which may be mapped from disk.
    labels: `(n, ...)`.
    rows: which of the n to use.
    plan: how many.
    seed: of the order.
    advance: told how many steps were handed out.
  """
  size = plan.batch_size
  shape = features(0).shape[1:]
  row_bytes = 4 * int(np.prod(shape))
  length = max(1, min(plan.per_epoch, _CHUNK_BYTES // (row_bytes * size)))
  for epoch in range(plan.epochs):
    held = features(epoch)
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(rows)
    for first in range(0, plan.per_epoch, length):
      used = min(length, plan.per_epoch - first)
      numbers = order[first * size : (first + used) * size]
      x = np.zeros((length, size, *shape), np.float32)
      x[:used] = held[numbers].reshape(used, size, *shape)
      y = np.zeros((length, size, *labels.shape[1:]), labels.dtype)
      y[:used] = labels[numbers].reshape(used, size, *labels.shape[1:])
      yield Chunk({'x': x, 'y': y}, used)
      advance(used)
