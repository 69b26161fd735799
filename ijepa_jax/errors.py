"""What a user sees when something is wrong: one line, and an exit code.

| code | class            | meaning, and what a launcher should do            |
|------|------------------|---------------------------------------------------|
| 0    |                  | finished                                          |
| 2    | `UserError`      | bad config, path or argument: do not requeue      |
| 3    | `DataError`      | too many broken records: do not requeue           |
| 4    | `NonFiniteError` | NaN or infinite loss: do not requeue              |
| 75   | `Interrupted`    | stopped by a signal, state saved: run it again    |
| 130  |                  | Ctrl-C outside the training loop                  |
"""

import contextlib
import sys
from collections.abc import Iterator


class UserError(Exception):
  """Bad input; the message is one line: what is wrong, what was expected."""

  exit_code = 2


class DataError(UserError):
  """The data set is broken beyond `data.max_bad_share`."""

  exit_code = 3


class NonFiniteError(UserError):
  """The loss or the gradient became NaN or infinite."""

  exit_code = 4


class Interrupted(UserError):
  """SIGTERM or Ctrl-C arrived and the state was saved (EX_TEMPFAIL)."""

  exit_code = 75


@contextlib.contextmanager
def exit_cleanly() -> Iterator[None]:
  """Turns a `UserError` into one line on stderr and its exit code.

  For the entry points of commands only. Any other exception is a bug of ours
  and keeps its traceback.
  """
  code = 0
  try:
    yield
  except UserError as error:
    print(f'error: {error}', file=sys.stderr, flush=True)
    code = error.exit_code
  except KeyboardInterrupt:
    print('error: interrupted, nothing saved', file=sys.stderr, flush=True)
    code = 130
  # Out of the `except`: there the error's traceback would keep alive all that
  # the failed functions held, batches in shared memory among it.
  if code:
    sys.exit(code)
