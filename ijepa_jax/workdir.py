"""A run's directory, which one run at a time may write to."""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import pathlib
import socket
import sys
import threading
import time
from typing import Any

from ijepa_jax import errors

LOCK = 'lock'

# A run shows that it lives by counting in the lock file.
_BEAT_SECONDS = 3.0
_WATCH_SECONDS = 4 * _BEAT_SECONDS
# After which a file server gives back the locks of a host that is gone.
_LEASE_SECONDS = 120.0
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def make(workdir: pathlib.Path) -> None:
  """Makes the directory, for its owner alone, unless it is there.

  Raises:
    UserError: it cannot be made.
  """
  try:
    workdir.parent.mkdir(parents=True, exist_ok=True)
    workdir.mkdir(mode=0o700, exist_ok=True)
  except OSError as error:
    reason = 'is a file' if workdir.is_file() else error.strerror
    raise errors.UserError(
      f'--workdir={workdir} cannot be made: {reason}; expected a directory'
    ) from error


def _boot() -> str:
  """Tells a running kernel, which is what a lock is of, from others.

  A host name does not: a container has the same one on its next machine.
  """
  try:
    return pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
  except OSError:  # not Linux
    return socket.gethostname()


class Lock:
  """Context manager: holds a run's directory, or refuses.

  Where the file system has locks, the kernel gives the lock back when a run
  ends, however it ends. It may have none, or one per host only (NFS without
  its lock service, some set-ups of Lustre), and a file server may keep that of
  a host that is gone for a while. So a run also counts in the lock file, and
  whoever finds the count of another host there waits to see whether it still
  moves. Nobody's clock matters.
  """

  def __init__(self, workdir: pathlib.Path):
    self._workdir = workdir
    self._path = workdir / LOCK
    self._file: int | None = None
    self._ended = threading.Event()
    self._beats = threading.Thread(target=self._beat, daemon=True)
    self._mine = {
      'host': socket.gethostname(),
      'boot': _boot(),
      'pid': os.getpid(),
      'started': datetime.datetime.now().astimezone().isoformat(' ', 'seconds'),
    }

  def __enter__(self) -> 'Lock':
    """Takes the lock.

    Raises:
      UserError: another run has it; it names host, process and start.
      StorageError: the lock file cannot be written.
    """
    try:
      with contextlib.ExitStack() as stack:
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        stack.callback(os.close, self._file)
        self._take()
        self._write(0)
        stack.pop_all()  # it stays open
    except OSError as error:
      raise errors.StorageError(
        f'cannot write {self._path}: {error.strerror}'
      ) from error
    self._beats.start()
    return self

  def __exit__(self, *_: object) -> None:
    assert self._file is not None
    self._ended.set()
    self._beats.join()
    # Empty: who comes next need not wait.
    with contextlib.suppress(OSError):
      os.ftruncate(self._file, 0)
    os.close(self._file)

  def _take(self) -> None:
    """Locks the file, or refuses if a run that lives has it."""
    end = time.monotonic() + _LEASE_SECONDS
    while True:
      locked = self._flock()
      other = self._read()
      here = other is not None and other.get('boot') == self._mine['boot']
      blocked = locked is False
      if blocked and (other is None or here or time.monotonic() > end):
        raise self._refusal(other)
      if other and not (locked and here):
        self._watch(other)
      if not blocked:
        return

  def _flock(self) -> bool | None:
    """Locks the file; False if another has it, None if there are no locks."""
    assert self._file is not None
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      return False
    except OSError as error:
      if error.errno not in _NO_LOCKS:
        raise
      return None
    return True

  def _watch(self, other: dict[str, Any]) -> None:
    """Refuses if the count of another host moves."""
    print(
      f'{self._path} is left of a run on {other.get("host")}: looking for '
      f'{_WATCH_SECONDS:.0f} s whether it still lives',
      file=sys.stderr,
      flush=True,
    )
    end = time.monotonic() + _WATCH_SECONDS
    while time.monotonic() < end:
      time.sleep(_BEAT_SECONDS / 3)
      # Opened anew: network file systems look at the server then.
      if self._path.read_bytes().rstrip() != json.dumps(other).encode():
        raise self._refusal(self._read() or other)

  def _refusal(self, other: dict[str, Any] | None) -> errors.UserError:
    if other is None:
      other = {}
    return errors.UserError(
      f'--workdir={self._workdir} is in use by a run on host '
      f'{other.get("host", "unknown")}, process {other.get("pid", "unknown")}, '
      f'started {other.get("started", "at an unknown time")}; wait until it '
      'ends, or give another --workdir'
    )

  def _read(self) -> dict[str, Any] | None:
    """What the lock file says; None if nothing that can be read."""
    try:
      content = json.loads(self._path.read_bytes())
    except ValueError:
      return None
    return content if isinstance(content, dict) else None

  def _write(self, beat: int) -> None:
    assert self._file is not None
    content = json.dumps({**self._mine, 'beat': beat}).encode() + b'\n'
    os.pwrite(self._file, content, 0)
    os.ftruncate(self._file, len(content))

  def _beat(self) -> None:
    beat = 0
    while not self._ended.wait(_BEAT_SECONDS):
      beat += 1
      # Training must not end for a beat; where it matters, the next one counts.
      with contextlib.suppress(OSError):
        self._write(beat)
