"""SIGTERM and Ctrl-C as a wish that the training loop can look at."""

import signal
import types


class StopSignals:
  """Context manager: remembers the first SIGTERM or SIGINT.

  The second one acts as usual, so an impatient user still gets out.
  """

  def __init__(self) -> None:
    self.received: str | None = None
    self._previous: dict[signal.Signals, signal._HANDLER] = {}

  def __enter__(self) -> 'StopSignals':
    for number in (signal.SIGTERM, signal.SIGINT):
      self._previous[number] = signal.signal(number, self._remember)
    return self

  def __exit__(self, *_: object) -> None:
    self._restore()

  def _remember(self, number: int, _: types.FrameType | None) -> None:
    self.received = signal.Signals(number).name
    self._restore()

  def _restore(self) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)
