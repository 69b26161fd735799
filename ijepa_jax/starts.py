"""How a run was started: `starts.jsonl`, one line for each time."""

import json
import os
import pathlib
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

from ijepa_jax import atomic, errors

FILE_NAME = 'starts.jsonl'

# Environment variables that change what a run computes, or how fast.
_VARIABLES = ('JAX_', 'XLA_', 'LD_PRELOAD')


def record(workdir: pathlib.Path, told: Mapping[str, Any]) -> None:
  """Adds a line: what this process was started with.

  Args:
    workdir: the run's directory.
    told: what else to keep, JSON.

  Raises:
    StorageError: the file cannot be written.
  """
  start = {
    'time': round(time.time(), 3),
    'command': sys.orig_argv,
    'directory': os.getcwd(),
    'host': socket.gethostname(),
    'variables': {
      name: os.environ[name]
      for name in sorted(os.environ)
      if name.startswith(_VARIABLES)
    },
    **told,
  }
  file = workdir / FILE_NAME
  try:
    before = file.read_text(encoding='utf-8')
  except FileNotFoundError:
    before = ''
  except OSError as error:
    raise errors.StorageError(
      f'cannot read {file}: {error.strerror}'
    ) from error
  # Whole: to a half line, as a full disk leaves it, the next start would add.
  complete = before[: before.rfind('\n') + 1]
  atomic.write_text(file, complete + json.dumps(start) + '\n')
