"""SIGTERM and Ctrl-C as a wish that the training loop can look at."""

import signal
import types


class StopSignals:
  """Context manager: remembers the first SIGTERM or SIGINT.

  The second one acts as usual, so an impatient user still gets out.

  Where the run has several processes, they must stop at the same step: JAX has
  taken SIGTERM to agree on one (`Checkpoints.preempted`), and Ctrl-C becomes
  a SIGTERM.
  """

  def __init__(self, processes: int = 1) -> None:
    self.received: str | None = None
    self._alone = processes == 1
    self._previous: dict[signal.Signals, signal._HANDLER] = {}

  def __enter__(self) -> 'StopSignals':
    numbers = [signal.SIGINT, *([signal.SIGTERM] if self._alone else [])]
    for number in numbers:
      self._previous[number] = signal.signal(number, self._remember)
    return self

  def __exit__(self, *_: object) -> None:
    self._restore()

  def _remember(self, number: int, _: types.FrameType | None) -> None:
    self._restore()
    if self._alone:
      self.received = signal.Signals(number).name
    else:
      signal.raise_signal(signal.SIGTERM)

  def _restore(self) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)
