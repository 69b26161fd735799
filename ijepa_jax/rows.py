"""The rows of a batch that this process holds, and all rows for everybody."""

from collections.abc import Callable, Iterator

import jax
import numpy as np

from ijepa_jax import sharding


def held(mesh: jax.sharding.Mesh, batch_size: int) -> np.ndarray:
  """The rows of a global batch that lie on this process's devices.

  By the mesh, not by the process's number: where `tensor` spans processes,
  several hold the same rows.

  Args:
    mesh: of the run.
    batch_size: rows on all devices together.

  Returns:
    Row numbers in rising order, as many on every process.
  """
  indices = sharding.batch_sharding(mesh).addressable_devices_indices_map(
    (batch_size,)
  )
  numbers = np.arange(batch_size)
  return np.unique([numbers[index] for index in indices.values()])


class Shares:
  """Splits a fixed set of examples over the processes, batch by batch.

  Attributes:
    batch_size: rows of a batch on all devices.
  """

  def __init__(self, mesh: jax.sharding.Mesh, batch_size: int):
    """Makes shares.

    Args:
      mesh: of the run.
      batch_size: a multiple of the number of devices.
    """
    self.batch_size = batch_size
    self._held = held(mesh, batch_size)
    self._sharding = sharding.batch_sharding(mesh)
    self._whole = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))

  def mine(self, count: int) -> np.ndarray:
    """Which of `count` examples this process holds, in rising order."""
    numbers = np.arange(count)
    return numbers[np.isin(numbers % self.batch_size, self._held)]

  def gather(
    self,
    mine: np.ndarray,
    count: int,
    function: Callable[[jax.Array], jax.Array] | None = None,
  ) -> np.ndarray:
    """Everybody's rows on every process.

    Args:
      mine: `(len(self.mine(count)), ...)`, this process's rows.
      count: examples on all processes together.
      function: what to compute of the rows of a batch, to a replicated array
        with as many rows; by default nothing.

    Returns:
      `(count, ...)`, the same on every process. 64-bit numbers become 32-bit.
    """
    blocks = self.stream(
      iter(mine), count, mine.shape[1:], mine.dtype, function
    )
    return np.concatenate(list(blocks))

  def stream(
    self,
    mine: Iterator[np.ndarray],
    count: int,
    shape: tuple[int, ...],
    dtype: np.typing.DTypeLike,
    function: Callable[[jax.Array], jax.Array] | None = None,
  ) -> Iterator[np.ndarray]:
    """The same batch by batch, for more rows than fit in memory.

    Devices start on a batch before the result of the previous one is asked
    for, and work while it is used and the next one is read.

    Args:
      mine: this process's rows, one by one, as many as `self.mine(count)`.
      count: as in `gather`.
      shape: of a row.
      dtype: of a row.
      function: as in `gather`.

    Yields:
      `(b, ...)`, the next rows in order, the same on every process.
    """
    before: tuple[jax.Array, int] | None = None
    for start in range(0, count, self.batch_size):
      here = min(self.batch_size, count - start)
      block = np.zeros((len(self._held), *shape), dtype)
      for row in range(int((self._held < here).sum())):
        block[row] = next(mine)
      batch = jax.make_array_from_process_local_data(self._sharding, block)
      now = (function or self._whole)(batch), here
      if before is not None:
        yield np.asarray(before[0])[: before[1]]
      before = now
    if before is not None:
      yield np.asarray(before[0])[: before[1]]
