"""What a user sees when something is wrong: one line, and an exit code.

| code | class            | meaning, and what a launcher should do            |
|------|------------------|---------------------------------------------------|
| 0    |                  | finished                                          |
| 2    | `UserError`      | bad config, path or argument: do not requeue      |
| 3    | `DataError`      | too many broken records: do not requeue           |
| 4    | `NonFiniteError` | NaN or infinite loss: do not requeue              |
| 74   | `StorageError`   | files cannot be written: mend it, then run again  |
| 75   | `Interrupted`    | stopped by a signal, state saved: run it again    |
| 76   | `LostProcess`    | another process of the run died: run it again     |
| 130  |                  | Ctrl-C outside the training loop                  |
"""

import contextlib
import errno
import sys
from collections.abc import Iterator

# Never a bug of ours, wherever it comes up.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class UserError(Exception):
  """Bad input; the message is one line: what is wrong, what was expected."""

  exit_code = 2


class DataError(UserError):
  """The data set is broken beyond `data.max_bad_share`."""

  exit_code = 3


class NonFiniteError(UserError):
  """The loss or the gradient became NaN or infinite."""

  exit_code = 4


class StorageError(UserError):
  """Files cannot be written: no space, no permission, no disk (EX_IOERR)."""

  exit_code = 74


class Interrupted(UserError):
  """SIGTERM or Ctrl-C arrived and the state was saved (EX_TEMPFAIL)."""

  exit_code = 75


class LostProcess(UserError):
  """Another process of the run is gone, or never came (EX_PROTOCOL)."""

  exit_code = 76


def of_disk(error: OSError) -> StorageError | None:
  """The line about a disk that takes no more; None of any other error."""
  if error.errno not in _DISK_ERRORS:
    return None
  return StorageError(
    f'cannot write {error.filename or "a file"}: {error.strerror}'
  )


@contextlib.contextmanager
def exit_cleanly() -> Iterator[None]:
  """Turns a `UserError` into one line on stderr and its exit code.

  For the entry points of commands only. Any other exception is a bug of ours
  and keeps its traceback, except that a disk is full.
  """
  code = 0
  try:
    yield
  except UserError as error:
    print(f'error: {error}', file=sys.stderr, flush=True)
    code = error.exit_code
  except OSError as error:
    told = of_disk(error)
    if told is None:
      raise
    print(
      f'error: {told}; mend that and run the same command again',
      file=sys.stderr,
      flush=True,
    )
    code = told.exit_code
  except KeyboardInterrupt:
    print('error: interrupted, nothing saved', file=sys.stderr, flush=True)
    code = 130
  # Out of the `except`: there the error's traceback would keep alive all that
  # the failed functions held, batches in shared memory among it.
  if code:
    sys.exit(code)
