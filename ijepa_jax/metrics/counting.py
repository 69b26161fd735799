"""Progress of work that is counted: a bar on a terminal, else plain lines."""

import sys
import time
from typing import TextIO

import tqdm

from ijepa_jax.metrics import progress

# Between two lines of a log.
_SECONDS = 10.0


class Counter:
  """Context manager: shows what is done, the rate and the time left."""

  def __init__(
    self,
    what: str,
    total: int,
    unit: str,
    *,
    enabled: bool = True,
    stream: TextIO | None = None,
  ):
    """Starts at 0.

    Args:
      what: is being done.
      total: how much there is to do.
      unit: what is counted, in the plural.
      enabled: False makes it silent (all processes but one).
      stream: where to write, standard error by default.
    """
    self._what, self._total, self._unit = what, total, unit
    self._enabled, self._stream = enabled, stream or sys.stderr
    self._done = 0
    self._begin = self._told = time.monotonic()
    self._bar = None
    if enabled and progress.has_cursor(self._stream):
      self._bar = tqdm.tqdm(
        desc=what,
        total=total,
        unit=f' {unit}',
        smoothing=0.1,
        file=self._stream,
        dynamic_ncols=True,
      )

  def __enter__(self) -> 'Counter':
    return self

  def __exit__(self, *_: object) -> None:
    if self._bar is not None:
      self._bar.close()
    elif self._done:
      self._tell(time.monotonic())

  def add(self, count: int) -> None:
    """Says that `count` more are done."""
    self._done += count
    if self._bar is not None:
      self._bar.update(count)
      return
    now = time.monotonic()
    if now - self._told >= _SECONDS and self._done < self._total:
      self._tell(now)

  def _tell(self, now: float) -> None:
    self._told = now
    if not self._enabled:
      return
    rate = self._done / max(now - self._begin, 1e-9)
    left = (self._total - self._done) / rate
    end = (
      f', {progress.duration(left)} left' if self._done < self._total else ''
    )
    print(
      f'{self._what}: {self._done:,} of {self._total:,} {self._unit}, '
      f'{rate:,.0f} per second{end}',
      file=self._stream,
      flush=True,
    )
