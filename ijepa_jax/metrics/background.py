"""A metric writer that does not wait for the disk."""

import collections
import concurrent.futures
from collections.abc import Mapping

from ijepa_jax.metrics import writers

# Rows under way; with so many, the caller waits for the disk after all.
_LIMIT = 100


class BackgroundWriter:
  """Writes rows in order, in a thread; an error comes at a later call."""

  def __init__(self, writer: writers.MetricWriter):
    """Takes a writer over, and closes it in the end."""
    self._writer = writer
    self._thread = concurrent.futures.ThreadPoolExecutor(1)
    self._rows: collections.deque[concurrent.futures.Future[None]] = (
      collections.deque()
    )

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Takes a row, see `MetricWriter.write`.

    Raises:
      StorageError: this or an earlier row could not be written.
    """
    self._collect(keep=_LIMIT)
    self._rows.append(self._thread.submit(self._writer.write, step, metrics))

  def flush(self) -> None:
    """Returns when every row is on disk, or raises a StorageError."""
    self._collect(keep=0)

  def close(self) -> None:
    """Waits for all rows, and closes all sinks."""
    self._thread.shutdown()
    self._writer.close()
    self.flush()

  def _collect(self, keep: int) -> None:
    """Looks at the rows that are done, and waits for all but `keep`."""
    while self._rows and (self._rows[0].done() or len(self._rows) > keep):
      self._rows.popleft().result()
