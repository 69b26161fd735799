"""Several processes end together: promptly, with one line and one exit code.

A process that fails while the others wait for it in a collective operation
would leave them waiting. So it says what happened in the key-value store of
JAX's coordination service, where a thread of every process looks for that; the
line is told by process 0, and all leave with the same code.

Of a process that just disappears, the others learn by an error in their next
collective operation, or else from the coordination service, which aborts them.
Both become `errors.LostProcess` here.
"""

import contextlib
import ctypes
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import jax

from ijepa_jax import errors

_KEY = 'ijepa_jax/end'
_POLL_SECONDS = 0.5
# For the main thread to end by itself, where it does not wait for another.
_GRACE_SECONDS = 5
# For the other processes to learn of the end.
_BARRIER_SECONDS = 15
# For the others to finish too, when this process has.
_WELL_SECONDS = 600
# Where the service runs: the others need it until they are gone.
_LINGER_SECONDS = 1

_LOST = (
  'lost another process of the run; the same command continues from the last '
  'checkpoint'
)

# What JAX, Gloo, NCCL and Orbax say when a process they talk to is gone.
_GONE = re.compile(
  'gloo|barrier|coordination service|UNAVAILABLE|heartbeat'
  '|ncclRemoteError|ncclSystemError',
  re.IGNORECASE,
)


class _Ending:
  """What a process of several knows of the run's end."""

  def __init__(self, client: Any):
    """Starts to look for news.

    Args:
      client: of the coordination service.
    """
    self._client = client
    self._process = jax.process_index()
    self.code: int | None = None
    self._announced = False
    self._unwound = threading.Event()
    self._stopped = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)
    self._thread.start()
    on_abort(_LOST)

  def stop(self) -> None:
    """The run has ended well.

    Neither thread nor handler may be there when Python ends: a thread that
    comes back from C++ then, or a handler, would crash the process.
    """
    self._stopped.set()
    self._thread.join()
    on_abort(None)

  def announce(self, error: BaseException) -> None:
    """Tells all processes why this one ends; the first to tell counts."""
    if self._announced:
      return
    self._announced = True
    if _is_lost(error):
      error = errors.LostProcess(f'{_LOST} ({_one_line(error)})')
    code, line = _code_and_line(error)
    if code == 1:  # a bug of ours
      traceback.print_exception(error)
    if self._process and code != errors.LostProcess.exit_code:
      line = f'process {self._process}: {line}'
    told = json.dumps({'code': code, 'line': line})
    try:
      self._client.key_value_set(_KEY, told)
    except jax.errors.JaxRuntimeError as failure:
      if 'ALREADY_EXISTS' not in str(failure):  # the service is gone
        self._leave(code, line)
    if isinstance(error, errors.LostProcess):
      self._thread.join(_BARRIER_SECONDS)
      self._leave(code, line)

  def leave(self, error: BaseException) -> None:
    """Ends this process as soon as the others know."""
    self.announce(error)
    self._unwound.set()
    self._thread.join()
    self._leave(*_code_and_line(error))

  def _watch(self) -> None:
    """Waits for news of the end, and ends this process with the others."""
    told = None
    while told is None:
      if self._stopped.wait(_POLL_SECONDS):
        return
      try:
        told = self._client.key_value_try_get(_KEY)
      except jax.errors.JaxRuntimeError as error:
        if 'NOT_FOUND' not in str(error):
          return  # the service is gone, which aborts the process
    end = json.loads(told)
    self.code = end['code']
    line = end['line']
    if not self._process:
      _tell(line)
      line = None
    if end['code'] != errors.LostProcess.exit_code:
      self._unwound.wait(_GRACE_SECONDS)
      try:
        self._client.wait_at_barrier(_KEY, 1000 * _BARRIER_SECONDS)
        line = None
      except jax.errors.JaxRuntimeError:
        pass  # `line`: process 0 may be gone, and has not told it
    elif self._process:
      line = None
    if not self._process:
      time.sleep(_LINGER_SECONDS)
    self._leave(end['code'], line)

  def _leave(self, code: int, line: str | None) -> NoReturn:
    """Ends at once: what is registered to happen at exit waits for others."""
    if self.code is None:
      self.code = code
      if line:
        _tell(line)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(self.code)


_ending: _Ending | None = None
_handler: Any = None  # kept: the C library has only a pointer to it


def on_abort(line: str | None) -> None:
  """What to do where the C++ side of JAX aborts this process.

  That is its way to end a process whose peer is lost or does not come: a stack
  trace, SIGABRT and a core file. Python's own handlers run too late for that.

  Args:
    line: what is told before the process exits as of a `LostProcess`; None:
      abort, as where nothing is set.
  """
  global _handler

  def handle(_: int) -> None:
    code = _ending.code if _ending is not None else None
    if code is None:
      code = errors.LostProcess.exit_code
      _tell(f'{line} (JAX says above how it noticed)')
    os._exit(code)

  _handler = line and ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
  set_handler = ctypes.CDLL(None).signal
  set_handler.restype = ctypes.c_void_p
  set_handler(signal.SIGABRT, _handler)  # None: the default


@contextlib.contextmanager
def together(client: Any) -> Iterator[None]:
  """What ends inside, ends on all processes.

  Args:
    client: of the coordination service.
  """
  global _ending
  _ending = _Ending(client)
  try:
    yield
    # Or one that fails last would find nobody who ends with it.
    client.wait_at_barrier('ijepa_jax/well', 1000 * _WELL_SECONDS)
    _ending.stop()
  except errors.Interrupted as error:
    # All have saved the same step, and none waits for another.
    _ending.stop()
    if jax.process_index():
      raise SystemExit(error.exit_code) from None
    raise
  except BaseException as error:
    _ending.leave(error)
    raise  # not reached


@contextlib.contextmanager
def announcing() -> Iterator[None]:
  """Tells the others of an error at once.

  For what surrounds a collective operation and has outer context managers that
  wait for the others when they close. Does nothing in a process alone.
  """
  try:
    yield
  except errors.Interrupted:
    raise
  except BaseException as error:
    if _ending is not None:
      _ending.announce(error)
    raise


def _is_lost(error: BaseException) -> bool:
  """Whether an error of JAX or Orbax means that another process is gone."""
  return isinstance(error, (ValueError, RuntimeError)) and bool(
    _GONE.search(str(error))
  )


def _code_and_line(error: BaseException) -> tuple[int, str]:
  if isinstance(error, errors.UserError):
    return error.exit_code, str(error)
  if isinstance(error, KeyboardInterrupt):
    return 130, 'interrupted, nothing saved'
  return 1, f'{type(error).__name__}: {_one_line(error)}'


def _tell(line: str) -> None:
  print(f'error: {line}', file=sys.stderr, flush=True)


def _one_line(error: BaseException) -> str:
  return str(error).splitlines()[0] if str(error) else type(error).__name__
