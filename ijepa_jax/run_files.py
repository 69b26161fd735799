"""What a run has written so far, read without disturbing it.

Nothing is locked or written, and jax is not imported: a run can be looked at
from another machine, while it trains and years later.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
import time
from typing import Any, Literal

from ijepa_jax import errors, starts, workdir
from ijepa_jax.metrics import health, writers
from ijepa_jax.models import sizes

CONFIG = 'config.json'
CHECKPOINTS = 'checkpoints'
EVALUATION = pathlib.Path('evaluation', 'results.json')
PICTURES = pathlib.Path('visualize', 'visualize.json')

# A lock whose count stands still for so long belongs to a run that is gone.
SILENT_SECONDS = 30.0

State = Literal['running', 'silent', 'finished', 'stopped']

Judgement = tuple[int, health.Judged]  # at a step


@dataclasses.dataclass(frozen=True)
class Run:
  """The files of a run.

  Attributes:
    path: the run's directory.
    name: what to call it: the directory's own name.
    rows: of metrics.jsonl, oldest first.
    config: of config.json; empty when it is not there yet.
    starts: of starts.jsonl, oldest first.
    checkpoints: steps of the checkpoints that are there, in rising order.
    evaluation: of evaluation/results.json, or None.
    pictures: of visualize/visualize.json, with their titles.
  """

  path: pathlib.Path
  name: str
  rows: list[writers.Row]
  config: dict[str, Any]
  starts: list[dict[str, Any]]
  checkpoints: list[int]
  evaluation: dict[str, Any] | None
  pictures: list[dict[str, Any]]

  @property
  def step(self) -> int:
    """Updates done at the last row."""
    return int(self.rows[-1]['step']) if self.rows else 0

  @property
  def total_steps(self) -> int | None:
    """Updates at the end of the run, where it is known."""
    total = self.starts[-1]['steps'] if self.starts else None
    return total or self.config.get('total_steps')

  @property
  def finished(self) -> bool:
    """Whether the last update is done."""
    return self.total_steps is not None and self.step >= self.total_steps

  @functools.cached_property
  def latest(self) -> dict[str, float]:
    """The last value of every figure."""
    return {name: value for row in self.rows for name, value in row.items()}

  @property
  def first(self) -> dict[str, float]:
    """The row from before training, with its baselines; empty if none."""
    return self.rows[0] if self.rows and self.rows[0]['step'] == 0 else {}

  @property
  def labels(self) -> list[str]:
    """Names of the labels that are probed."""
    return list(
      dict.fromkeys(
        name.split('/', 1)[1].rsplit('/', 1)[0]
        for name in self.latest
        if name.startswith('probe/')
      )
    )

  @functools.cached_property
  def health(self) -> tuple[list[tuple[int, str]], dict[str, list[Judgement]]]:
    """Warnings as (step, text), and each figure's judgements over time."""
    width = sizes.SIZES.get(self.config.get('model', {}).get('variant'))
    watch = health.HealthWatch(
      feature_width=width.width if width else 0,
      warmup_steps=self._warmup_steps,
    )
    warnings: list[tuple[int, str]] = []
    judgements: dict[str, list[Judgement]] = {}
    for row in self.rows:
      step = int(row['step'])
      warnings += [
        (step, text.removeprefix('warning: '))
        for text in watch.check(step, row)
      ]
      for name, judged in watch.judged.items():
        if f'health/{name}' in row:
          judgements.setdefault(name, []).append((step, judged))
    return warnings, judgements

  @property
  def _warmup_steps(self) -> int:
    if self.starts:
      return int(self.starts[-1]['warmup_steps'])
    # A run from before starts.jsonl: the learning rate is highest at the end.
    rates = [row for row in self.rows if 'train/lr' in row]
    best = max(rates, key=lambda row: row['train/lr'], default={'step': 0})
    return int(best['step'])


def read(path: str | os.PathLike) -> Run:
  """Reads a run's directory.

  Raises:
    UserError: there is no run, or a file of it is damaged.
  """
  path = pathlib.Path(path).expanduser()
  if not path.is_dir():
    raise errors.UserError(f'{path}: no such directory; expected that of a run')
  metrics = path / writers.FILE_NAME
  config = _json(path / CONFIG, dict)
  if config is None and not metrics.is_file():
    raise errors.UserError(
      f'{path} holds no run: expected {CONFIG} or {writers.FILE_NAME} in it'
    )
  return Run(
    path=path,
    name=path.resolve().name,
    rows=writers.read_metrics(metrics) if metrics.is_file() else [],
    config=config or {},
    starts=_lines(path / starts.FILE_NAME),
    checkpoints=_checkpoints(path / CHECKPOINTS),
    evaluation=_json(path / EVALUATION, dict),
    pictures=_json(path / PICTURES, list) or [],
  )


class Pulse:
  """Whether a run lives: it counts in its lock file."""

  def __init__(self, path: pathlib.Path):
    """Looks at the lock of the run in `path` for the first time.

    Until the count has been seen to move, the file's age says how long it has
    stood still; the clocks of two machines may differ by that much.
    """
    self._path = path
    self._lock = _lock(path)
    age = time.time() - _modified(path / workdir.LOCK)
    self._moved = time.monotonic() - max(0.0, age)

  def look(self, run: Run) -> State:
    """Looks again: is the run alive?"""
    lock = _lock(self._path)
    if lock != self._lock:
      self._lock, self._moved = lock, time.monotonic()
    if not lock:
      return 'finished' if run.finished else 'stopped'
    return 'silent' if self.seconds > SILENT_SECONDS else 'running'

  @property
  def seconds(self) -> float:
    """Since the count has moved."""
    return time.monotonic() - self._moved


def _modified(file: pathlib.Path) -> float:
  try:
    return file.stat().st_mtime
  except FileNotFoundError:
    return -math.inf


def _lock(path: pathlib.Path) -> bytes:
  """The lock file's content: empty when no run holds it."""
  try:
    return (path / workdir.LOCK).read_bytes()
  except FileNotFoundError:
    return b''


def _checkpoints(folder: pathlib.Path) -> list[int]:
  """Orbax gives a checkpoint its plain number when it is complete."""
  if not folder.is_dir():
    return []
  return sorted(int(f.name) for f in folder.iterdir() if f.name.isdigit())


def _json(file: pathlib.Path, kind: type) -> Any:
  """The content of a file; None if it is not there."""
  try:
    content = json.loads(file.read_bytes())
  except FileNotFoundError:
    return None
  except OSError as error:
    raise errors.UserError(f'cannot read {file}: {error.strerror}') from error
  except ValueError as error:
    raise errors.UserError(f'{file} is not JSON: {error}') from error
  if not isinstance(content, kind):
    raise errors.UserError(
      f'{file} holds a {type(content).__name__}: expected a {kind.__name__}'
    )
  return content


def _lines(file: pathlib.Path) -> list[dict[str, Any]]:
  """The complete lines of a JSON Lines file; none if it is not there."""
  try:
    lines = file.read_bytes().split(b'\n')[:-1]
    return [json.loads(line) for line in lines]
  except FileNotFoundError:
    return []
  except OSError as error:
    raise errors.UserError(f'cannot read {file}: {error.strerror}') from error
  except ValueError as error:
    raise errors.UserError(f'{file} is not JSON Lines: {error}') from error
