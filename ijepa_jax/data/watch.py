"""Worker processes that die or stop must not leave a run waiting forever."""

import concurrent.futures
import multiprocessing
import pathlib
import re
import signal
from collections.abc import Iterator
from typing import Any

from ijepa_jax import errors

# Looks are this far apart, while nothing comes. They are counted: a clock would
# go on while the whole run is suspended.
_LOOK_SECONDS = 1.0
_LOOKS_AT_STOPPED = 10
# Nothing at all, from workers that seem alive: a disk that hangs.
_LOOKS_AT_NOTHING = 600
# For the batch being waited for at the end: closed under a reader, Grain loses
# track of that batch's shared memory.
_CLOSE_SECONDS = 10.0


class Watched:
  """Iterates over what workers make; raises when they are gone.

  A thread waits for the workers, so that the caller never waits for them
  without looking after them.
  """

  def __init__(self, iterator: Iterator[Any]):
    """Starts to read; `close` must be called, before that of `iterator`."""
    self._iterator = iterator
    self._thread = concurrent.futures.ThreadPoolExecutor(1)
    self._coming = self._thread.submit(next, iterator)

  def __iter__(self) -> 'Watched':
    return self

  def __next__(self) -> Any:
    """The next batch.

    Raises:
      LostProcess: a worker was killed, is stopped, or nothing comes.
    """
    looks = 0
    while not self._coming.done():
      concurrent.futures.wait([self._coming], timeout=_LOOK_SECONDS)
      looks += 1
      if not self._coming.done():
        _look(looks)
    try:
      batch = self._coming.result()
    except RuntimeError as error:
      raise _explained(error) from error
    self._coming = self._thread.submit(next, self._iterator)
    return batch

  def close(self) -> None:
    """Drops what was read ahead, and ends the thread."""
    concurrent.futures.wait([self._coming], timeout=_CLOSE_SECONDS)
    self._coming.cancel()
    del self._coming
    self._thread.shutdown(wait=False)


def _look(looks: int) -> None:
  """Ends workers that will not go on by themselves, and says so."""
  workers = [
    child
    for child in multiprocessing.active_children()
    if 'grain' in child.name
  ]
  for worker in workers:
    if looks >= _LOOKS_AT_STOPPED and _is_stopped(worker.pid):
      worker.kill()
      raise errors.LostProcess(
        f'data worker {worker.pid} was stopped (SIGSTOP) and gave no batch for '
        f'{looks} s; the same command continues from the last checkpoint'
      )
  if looks >= _LOOKS_AT_NOTHING:
    for worker in workers:
      worker.kill()
    raise errors.LostProcess(
      f'the data workers gave no batch for {looks} s: does the disk of '
      'data.path answer? The same command continues from the last checkpoint'
    )


def _explained(error: RuntimeError) -> Exception:
  """Grain's error of a dead worker as one line; others as they are."""
  found = re.search(r'unexpectedly with exit code (-?\d+)', str(error))
  if found is None:
    return error
  code = int(found[1])
  how = f'ended with exit code {code}'
  if code < 0:
    how = f'was killed by {signal.Signals(-code).name}'
  if code == -signal.SIGKILL:
    how += ', as the kernel does when memory runs out'
  return errors.LostProcess(
    f'a data worker {how}; the same command continues from the last '
    'checkpoint, with less memory if data.workers is smaller'
  )


def _is_stopped(pid: int | None) -> bool:
  """Whether a process is stopped by a signal; False where there is no /proc."""
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return False
  return stat.rpartition(')')[2].split()[0] == 'T'
