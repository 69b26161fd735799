"""Progress of a run: a bar on a terminal, plain lines anywhere else."""

import os
import sys
import time
from typing import TextIO

import tqdm

# Weight of the newest interval in the time left: one slow interval (saving,
# evaluation) moves it by a third, and ten intervals forget a change of speed.
_NEWEST = 0.3


class Progress:
  """Shows step, epoch, loss, images per second and time left.

  On a terminal a bar follows every step. Elsewhere (a log file, a batch system)
  each `report` is one plain line and nothing comes in between.
  """

  def __init__(
    self,
    total_steps: int,
    start_step: int,
    steps_per_epoch: int,
    batch_size: int,
    *,
    enabled: bool = True,
    stream: TextIO | None = None,
  ):
    """Starts at `start_step`, the number of steps done before.

    Args:
      total_steps: steps at the end of the run.
      start_step: above 0 when a run is resumed.
      steps_per_epoch: for the epoch shown.
      batch_size: images per step, all processes together.
      enabled: False makes every method silent (all processes but one).
      stream: where to write, standard error by default.
    """
    self._total, self._start = total_steps, start_step
    self._steps_per_epoch, self._batch_size = steps_per_epoch, batch_size
    self._enabled = enabled
    self._stream = stream or sys.stderr
    self._mark: tuple[int, float] | None = None  # step and time of a report
    self._seconds_per_step: float | None = None
    self._bar = None
    if enabled and has_cursor(self._stream):
      self._bar = tqdm.tqdm(
        total=total_steps,
        initial=start_step,
        file=self._stream,
        dynamic_ncols=True,
        bar_format='{percentage:3.0f}%|{bar}| step {n:,}/{total:,}  {desc}',
        desc=self._status(start_step),
      )

  def advance(self, step: int) -> None:
    """Says that `step` steps are done. To be called after every step."""
    if self._mark is None:
      # The clock starts after the first step, which waits for the compiler.
      self._mark = step, time.monotonic()
    if self._bar is not None:
      self._bar.update(step - self._bar.n)

  def report(
    self, step: int, loss: float, images_per_second: float | None = None
  ) -> None:
    """Shows the loss, the speed and the time left.

    Args:
      step: as of `advance`.
      loss: mean since the last report.
      images_per_second: without what is not training, such as evaluation;
        None: by the clock, like the time left, which holds that too.
    """
    now = time.monotonic()
    speed = images_per_second
    if self._mark is not None and step > self._mark[0]:
      seconds = (now - self._mark[1]) / (step - self._mark[0])
      if speed is None:
        speed = self._batch_size / max(seconds, 1e-9)
      before = self._seconds_per_step
      self._seconds_per_step = (
        seconds if before is None else before + _NEWEST * (seconds - before)
      )
    self._mark = step, now
    status = self._status(step, loss, speed)
    if self._bar is not None:
      self._bar.set_description_str(status)
    else:
      self.log(f'step {step:,}/{self._total:,}  {status}')

  def log(self, message: str) -> None:
    """Prints a message, above the bar if there is one."""
    if not self._enabled:
      return
    if self._bar is not None:
      self._bar.write(message, file=self._stream)
    else:
      print(message, file=self._stream, flush=True)

  def close(self) -> None:
    """Leaves the last state of the bar on the terminal."""
    if self._bar is not None:
      self._bar.close()

  def _status(
    self, step: int, loss: float | None = None, speed: float | None = None
  ) -> str:
    parts = [f'epoch {step / self._steps_per_epoch:.1f}']
    if loss is not None:
      parts.append(f'loss {loss:.4f}')
    if speed is not None:
      digits = 0 if speed >= 10 else 1
      parts.append(f'{speed:,.{digits}f} images/s')
    if self._seconds_per_step is not None:
      left = (self._total - step) * self._seconds_per_step
      parts.append(f'{duration(left)} left')
    return '  '.join(parts)


def has_cursor(stream: TextIO) -> bool:
  """Whether a line of the stream can be written over."""
  if not stream.isatty() or os.environ.get('TERM') == 'dumb':
    return False
  # Containers may have a terminal without a size; tqdm shows nothing there.
  return os.get_terminal_size(stream.fileno()).columns > 0


def duration(seconds: float) -> str:
  """Two units at most: '45 s', '11 m 20 s', '2 h 05 m', '3 d 04 h'."""
  total = max(0, round(seconds))
  for size, unit, small, small_unit in (
    (86_400, 'd', 3_600, 'h'),
    (3_600, 'h', 60, 'm'),
    (60, 'm', 1, 's'),
  ):
    if total >= size:
      return f'{total // size} {unit} {total % size // small:02d} {small_unit}'
  return f'{total} s'
