"""Keeps off the screen what else is said of a save that failed.

Its reason is told in one line and kept (`checkpoint.Checkpoints`). Orbax logs
it with a traceback as well; and it leaves the other arrays' writes, which have
failed too or were never begun, to asyncio, which tells of each when it is
collected.
"""

import logging
import os
import sys
import traceback
import types
import warnings

_ORBAX = os.path.join('orbax', 'checkpoint', '')


def silence() -> None:
  """Silences it in this process, from now on; once or often."""
  logging.getLogger('absl').addFilter(_is_no_orbax_traceback)
  logging.getLogger('asyncio').addFilter(_is_no_failed_write)
  sys.unraisablehook = _hide_closed_loop
  warnings.filterwarnings(
    'ignore',
    r"coroutine 'async_serialize_\w+\.<locals>\.\w+' was never awaited",
    RuntimeWarning,
  )


def _is_no_orbax_traceback(record: logging.LogRecord) -> bool:
  return not (record.exc_info and 'orbax' in record.pathname)


def _is_no_failed_write(record: logging.LogRecord) -> bool:
  """False for the exception of a write that nobody awaits any more."""
  if not record.exc_info:
    return True
  _, error, trace = record.exc_info
  # TensorStore's own futures fail without a traceback.
  bare = trace is None and '[os_error_code=' in str(error)
  return not (bare or _passed_orbax(trace))


def _passed_orbax(trace: types.TracebackType | None) -> bool:
  return any(
    _ORBAX in frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace)
  )


def _hide_closed_loop(unraisable: 'sys.UnraisableHookArgs') -> None:
  """After a failed write TensorStore calls a loop that Orbax has closed."""
  if str(unraisable.exc_value) != 'Event loop is closed':
    sys.__unraisablehook__(unraisable)
