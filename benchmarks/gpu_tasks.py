"""What `gpu_check.py` does, one task after the other, and what comes out."""

import dataclasses
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import jax

from ijepa_jax import errors

# How a task ended. `fail` alone makes the whole check fail.
PASS, FAIL, MEASURED = 'pass', 'fail', 'measured'
UNSUPPORTED, NO_MEMORY, SKIPPED = 'unsupported', 'no memory', 'skipped'

# What a program that does not work raises. JAX's own are RuntimeErrors.
MISTAKES = (
  ArithmeticError,
  AssertionError,
  AttributeError,
  LookupError,
  OSError,
  RuntimeError,
  TypeError,
  ValueError,
  errors.UserError,
)


@dataclasses.dataclass(frozen=True)
class Row:
  """The result of a task.

  Attributes:
    name: the task's.
    status: one of the constants above.
    note: for people.
    values: for programs; ready for JSON.
    seconds: that it took.
  """

  name: str
  status: str
  note: str = ''
  values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  seconds: float = 0.0


# The rows of the tasks before it, by name, in this process or an earlier one.
Earlier = Mapping[str, Row]
# What a task's function returns: status, note, values.
Result = tuple[str, str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Task:
  """Something to check or to measure.

  Attributes:
    name: unique.
    seconds: that it is expected to take on an H200, compilation included; it
      is not begun where less is left.
    run: does it.
  """

  name: str
  seconds: float
  run: Callable[[Earlier], Result]


@dataclasses.dataclass(frozen=True)
class Process:
  """Tasks that share a process, and with it the device's peak of memory.

  Attributes:
    tasks: in order of importance.
    flags: for XLA, in addition to those in the environment.
    environment: other variables.
  """

  tasks: tuple[Task, ...]
  flags: str = ''
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


def perform(task: Task, earlier: Earlier) -> Row:
  """Runs a task; what goes wrong becomes its row, and the next one follows."""
  start = time.monotonic()
  try:
    status, note, values = task.run(earlier)
  except MISTAKES as error:
    reason = one_line(error)
    if 'RESOURCE_EXHAUSTED' in reason or 'out of memory' in reason.lower():
      status, note, values = NO_MEMORY, reason, {}
    else:
      traceback.print_exc()
      status, note, values = FAIL, reason, {}
  seconds = round(time.monotonic() - start, 1)
  return Row(task.name, status, note, values, seconds)


def one_line(error: BaseException) -> str:
  """The first line of an error's message, with its type, not too long."""
  lines = str(error).strip().splitlines() or ['']
  return f'{type(error).__name__}: {lines[0][:300]}'


def lacks_cudnn(attention: str) -> Result | None:
  """What a task says where its attention needs a GPU and there is none."""
  if attention == 'cudnn' and jax.default_backend() != 'gpu':
    return SKIPPED, 'cudnn needs an NVIDIA GPU', {}
  return None
