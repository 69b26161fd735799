"""What saving costs: the loop stands still, and goes slower for a while.

A save copies the state to the host while the loop waits, and writes it while
the loop goes on. Both are measured against steps without a save.
"""

import contextlib
import pathlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax

from ijepa_jax import checkpoint, errors
from ijepa_jax.benchmark import record, report
from ijepa_jax.benchmark.trial import Trial

# Steps between two saves, for the share of time that is lost.
EVERY = 1000


def measure(
  trial: Trial,
  directory: pathlib.Path | None = None,
  *,
  saves: int = 3,
  steps: int = 20,
  seconds: float = 10.0,
) -> dict[str, Any]:
  """Saves while training.

  Args:
    trial: the compiled step.
    directory: where to; must exist, and what is written there is deleted.
      None: where temporary files go.
    saves: that count; one before them starts what saving needs.
    steps: without a save, at most.
    seconds: likewise.

  Returns:
    Ready for JSON: `blocked_seconds` that the loop stands still,
    `slowed_seconds` that the steps beside a save take longer in all,
    `on_disk_seconds` till the checkpoint is whole, `bytes`, and `lost_share`
    of the wall time at a save every `EVERY` steps.

  Raises:
    UserError: no such directory, or too little space.
  """
  needed = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(trial.state))
  with _workdir(directory, needed) as workdir:
    timed = trial.run(warmup=2, steps=steps, seconds=seconds)
    step_seconds = statistics.median(timed.steps)
    blocked, slowed, on_disk = [], [], []
    with contextlib.closing(
      checkpoint.Checkpoints(workdir, keep=1, keep_period=None)
    ) as checkpoints:
      for number in range(saves + 1):
        report.say(f'checkpoint: save {number} of {saves}')
        path = pathlib.Path(checkpoints.path(number))
        jax.block_until_ready(trial.state)
        start = time.perf_counter()
        checkpoints.save(number, trial.state, {})
        blocked.append(time.perf_counter() - start)
        # Orbax renames the folder when everything is in it.
        beside = trial.run(until=path.exists).steps
        checkpoints.wait()
        on_disk.append(time.perf_counter() - start)
        slowed.append(max(0.0, sum(beside) - len(beside) * step_seconds))
      files = [file for file in path.rglob('*') if file.is_file()]
      written = sum(file.stat().st_size for file in files)
  lost = [sum(both) for both in zip(blocked[1:], slowed[1:])]
  return {
    'name': trial.name,
    'seconds_per_step': step_seconds,
    'blocked_seconds': record.spread(blocked[1:]),
    'slowed_seconds': record.spread(slowed[1:]),
    'on_disk_seconds': record.spread(on_disk[1:]),
    'first_blocked_seconds': blocked[0],
    'bytes': written,
    'files': len(files),
    'every': EVERY,
    'lost_share': record.spread([x / (EVERY * step_seconds + x) for x in lost]),
  }


def table(result: dict[str, Any]) -> str:
  """The result of `measure` for people."""
  rows = [
    (
      name,
      report.seconds(result[f'{key}_seconds']['median']),
      remark,
    )
    for name, key, remark in (
      (
        'loop stands still',
        'blocked',
        f'the first time {report.seconds(result["first_blocked_seconds"])}',
      ),
      ('steps beside it', 'slowed', 'longer in all'),
      ('on disk after', 'on_disk', ''),
    )
  ]
  rows += [
    ('size', report.size(result['bytes']), f'in {result["files"]} files'),
    (
      'lost',
      f'{result["lost_share"]["median"]:.3%}',
      f'of the time, with a save every {result["every"]:,} steps of '
      f'{report.seconds(result["seconds_per_step"])}',
    ),
  ]
  return f'checkpoint: {result["name"]}\n{report.columns(rows)}'


@contextlib.contextmanager
def _workdir(
  directory: pathlib.Path | None, needed: int
) -> Iterator[pathlib.Path]:
  """A folder that is deleted afterwards, on a disk with enough space."""
  if directory is not None and not directory.is_dir():
    raise errors.UserError(f'--dir={directory}: no such directory')
  with tempfile.TemporaryDirectory(dir=directory) as folder:
    free = shutil.disk_usage(folder).free
    if free < needed:
      raise errors.UserError(
        f'--dir={directory or folder}: {report.size(free)} free, two '
        f'checkpoints need {report.size(needed)}'
      )
    yield pathlib.Path(folder)
