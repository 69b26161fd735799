"""Writes figures of a run to metrics.jsonl, TensorBoard and Weights & Biases.

`metrics.jsonl` holds one JSON object per line: {"step": 50, "time": 1.7e9,
"train/loss": 0.14, ...}. `time` is in Unix seconds. NaN and infinity, which
JSON does not have, are null.
"""

import json
import math
import os
import pathlib
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ijepa_jax.errors import StorageError, UserError

FILE_NAME = 'metrics.jsonl'
TENSORBOARD_DIR = 'tensorboard'
_WANDB_ID_FILE = 'wandb_id'

Row = dict[str, float]


def read_metrics(path: str | os.PathLike) -> list[Row]:
  """Reads metrics.jsonl, oldest row first; null becomes NaN.

  A half-written last line, as a killed run leaves it, is dropped.

  Raises:
    UserError: the file is missing, or a line before the last is not a row.
  """
  path = pathlib.Path(path)
  try:
    lines = path.read_bytes().split(b'\n')
  except OSError as error:
    raise UserError(f'cannot read {path}: {error.strerror}') from error
  rows = []
  # Every complete line ends in a newline, so the last part is '' or a half.
  for number, line in enumerate(lines[:-1], start=1):
    try:
      row = json.loads(line)
      rows.append(
        {'step': row['step']}
        | {
          name: math.nan if value is None else value
          for name, value in row.items()
        }
      )
    except (ValueError, TypeError, KeyError) as error:
      raise UserError(
        f'{path} line {number} is not a JSON object with a "step": repair the '
        'line or move the file away'
      ) from error
  return rows


class MetricWriter:
  """Appends rows of figures to every sink that is on.

  Every row is on disk (or an error is raised) when `write` returns. For one
  process of a run only.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    *,
    tensorboard: bool,
    wandb: bool,
    config: Mapping[str, Any],
    resume_step: int | None,
  ):
    """Opens the sinks and removes rows that a resumed run will write again.

    Args:
      workdir: made if missing. metrics.jsonl and tensorboard/ lie in it.
      tensorboard: also write TensorBoard event files.
      wandb: also log to Weights & Biases.
      config: the run's configuration, for Weights & Biases.
      resume_step: the step of the restored checkpoint; later rows are dropped.
        None for a run that starts from nothing: all rows are.

    Raises:
      StorageError: a file cannot be written.
      UserError: wandb is on and not installed.
    """
    self._path = pathlib.Path(workdir) / FILE_NAME
    first_new_step = 0 if resume_step is None else resume_step + 1
    with _disk_errors(self._path):
      self._path.parent.mkdir(parents=True, exist_ok=True)
      if self._path.is_file():
        _keep_rows_before(self._path, first_new_step)
      # Unbuffered: what a failed write left over is not tried again at close.
      self._file = open(self._path, 'ab', buffering=0)  # noqa: SIM115
    self._events = None
    if tensorboard:
      directory = self._path.parent / TENSORBOARD_DIR
      self._events = _EventFile(directory, first_new_step)
    self._wandb = _start_wandb(self._path.parent, config) if wandb else None

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Appends one row.

    Args:
      step: number of updates done.
      metrics: name -> scalar. Names are grouped by what is before their '/'.

    Raises:
      StorageError: the row could not be written, as on a full disk.
    """
    now = time.time()
    values = {name: float(value) for name, value in metrics.items()}
    row = {'step': step, 'time': round(now, 3)} | {
      name: value if math.isfinite(value) else None
      for name, value in values.items()
    }
    line = json.dumps(row, allow_nan=False).encode() + b'\n'
    with _disk_errors(self._path):
      while line:
        line = line[self._file.write(line) :]
    if self._events is not None:
      self._events.write(step, now, values)
    if self._wandb is not None:
      self._wandb.log(values, step=step)

  def close(self) -> None:
    """Closes all sinks. More than one call does nothing more."""
    if self._file.closed:
      return
    self._file.close()
    if self._events is not None:
      self._events.close()
    if self._wandb is not None:
      self._wandb.finish()


@contextmanager
def _disk_errors(path: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise StorageError(f'cannot write {path}: {error.strerror}') from error


def _keep_rows_before(path: pathlib.Path, step: int) -> None:
  """Rewrites the file without later rows, atomically."""
  rows = path.read_bytes().split(b'\n')[:-1]
  kept = [
    row
    for row, values in zip(rows, read_metrics(path), strict=True)
    if values['step'] < step
  ]
  temporary = path.with_name(path.name + '.tmp')
  with open(temporary, 'wb') as file:
    file.write(b''.join(row + b'\n' for row in kept))
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)


class _EventFile:
  """A TensorBoard event file, written by the calling thread.

  tensorboardX's `SummaryWriter` writes from a thread: on a full disk the thread
  dies, rows vanish, and training hangs once its queue is full.
  """

  def __init__(self, directory: pathlib.Path, first_new_step: int):
    with _without_torch():
      from tensorboardX import event_file_writer
      from tensorboardX.proto import event_pb2, summary_pb2
    self._event_pb2, self._summary_pb2 = event_pb2, summary_pb2
    self._path = directory
    with _disk_errors(directory):
      directory.mkdir(exist_ok=True)
      # TensorBoard reads files by name, and a name counts seconds only.
      self._writer = event_file_writer.EventsWriter(
        str(directory / 'events'), f'.{time.time_ns()}'
      )
    # Tells TensorBoard to forget what a killed run wrote from here on.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._add(
      event_pb2.Event(
        step=first_new_step, wall_time=time.time(), session_log=start
      )
    )

  def write(self, step: int, now: float, values: Mapping[str, float]) -> None:
    value = self._summary_pb2.Summary.Value
    summary = self._summary_pb2.Summary(
      value=[value(tag=name, simple_value=v) for name, v in values.items()]
    )
    event = self._event_pb2.Event
    self._add(event(step=step, wall_time=now, summary=summary))

  def _add(self, event: Any) -> None:
    with _disk_errors(self._path):
      self._writer.write_event(event)
      self._writer.flush()

  def close(self) -> None:
    with _disk_errors(self._path):
      self._writer.close()


@contextmanager
def _without_torch() -> Iterator[None]:
  """Makes `import torch` fail inside the block, unless it is loaded already.

  tensorboardX imports torch when it finds it and needs it for nothing here:
  seconds of start-up, and a second owner of the accelerator's memory.
  """
  if 'torch' in sys.modules:
    yield
    return
  sys.modules['torch'] = None  # type: ignore[assignment]
  try:
    yield
  finally:
    del sys.modules['torch']


def _start_wandb(workdir: pathlib.Path, config: Mapping[str, Any]) -> Any:
  try:
    from wandb import Error, init
  except ImportError as error:
    raise UserError(
      'log.wandb is on but wandb is not installed: run "pip install wandb", or '
      'set log.wandb to False'
    ) from error
  # The id makes a resumed run continue its page instead of opening a new one.
  id_file = workdir / _WANDB_ID_FILE
  with _disk_errors(id_file):
    if not id_file.exists():
      id_file.write_text(uuid.uuid4().hex[:12])
    run_id = id_file.read_text().strip()
  try:
    return init(
      project='ijepa_jax',
      name=workdir.resolve().name,
      id=run_id,
      resume='allow',
      dir=workdir,
      config=dict(config),
    )
  except Error as error:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise UserError(
      f'log.wandb is on but Weights & Biases did not start ({reason}): run '
      '"wandb login", or set WANDB_MODE=offline, or set log.wandb to False'
    ) from error
