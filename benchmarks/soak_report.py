"""What `soak.py` saw: figures, a verdict and a picture."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ijepa_jax.benchmark import record as records
from ijepa_jax.visualize import figure as figures

# A process may take so long to reach its size: caches fill, allocators keep.
_SETTLE_SHARE = 0.25
# What a week at the measured rate may add to the memory of a process.
_WEEK_HOURS = 168
_MEMORY_MB_PER_HOUR = 4.0


@dataclasses.dataclass(frozen=True)
class Sample:
  """One look at a run; lists are of the main process, then each worker.

  Attributes:
    hours: since the first row of metrics.
    step: of the last row of metrics.
    pss_mb: memory, what is shared divided among those that share it.
    uss_mb: memory that only this process has.
    files: open file descriptors.
    threads: threads.
    shared_memory: entries in /dev/shm.
    checkpoints: folders beside each other, unfinished ones included.
    checkpoint_mb: bytes of all of them.
  """

  hours: float
  step: int
  pss_mb: list[float]
  uss_mb: list[float]
  files: list[int]
  threads: list[int]
  shared_memory: int
  checkpoints: int
  checkpoint_mb: float


def line(sample: Sample) -> str:
  """A sample for people who wait."""
  return (
    f'{60 * sample.hours:6.1f} min  step {sample.step:,}  MB '
    f'{" ".join(f"{value:.0f}" for value in sample.pss_mb)}  files '
    f'{sum(sample.files)}  shm {sample.shared_memory}  checkpoints '
    f'{sample.checkpoints}'
  )


def judge(
  samples: list[Sample], stopped: int, replayed: bool
) -> dict[str, Any]:
  """Slopes after the first quarter, and what is too steep.

  Args:
    samples: in order of time.
    stopped: step at which the run was stopped.
    replayed: whether its last steps gave the same bits once more.

  Returns:
    Ready for JSON; `passed` is the verdict, `failures` its reasons.
  """
  hours = np.array([sample.hours for sample in samples])
  late = hours >= _SETTLE_SHARE * hours[-1]
  names = ['main', *(f'worker {n}' for n in range(len(samples[0].pss_mb) - 1))]
  slopes: dict[str, dict[str, float]] = {}
  for kind in ('pss_mb', 'uss_mb', 'files', 'threads'):
    for column, name in enumerate(names):
      values = np.array([getattr(sample, kind)[column] for sample in samples])
      slopes[f'{kind} {name}'] = _fit(hours[late], values[late])
  for kind in ('shared_memory', 'checkpoints', 'checkpoint_mb'):
    values = np.array([getattr(sample, kind) for sample in samples])
    slopes[kind] = _fit(hours[late], values[late])
  failures = [
    f'{name} grows by {slope["per_hour"]:.2f} per hour'
    for name, slope in slopes.items()
    if slope['per_hour'] - 2 * slope['error'] > _limit(name, slope['mean'])
  ]
  if not replayed:
    failures.append('the last steps gave other parameters when repeated')
  return {
    'command': 'python benchmarks/soak.py',
    'machine': records.machine(),
    'versions': records.versions(),
    'hours': float(hours[-1]),
    'steps': stopped,
    'replayed_bitwise': replayed,
    'slopes': slopes,
    'failures': failures,
    'passed': not failures,
    'samples': [dataclasses.asdict(sample) for sample in samples],
  }


def _limit(name: str, mean: float) -> float:
  """Growth per hour that is none: MB of a process, else 1 % of the mean."""
  if name.startswith(('pss_mb', 'uss_mb')):
    return _MEMORY_MB_PER_HOUR
  return 0.01 * mean


def _fit(hours: np.ndarray, values: np.ndarray) -> dict[str, float]:
  """A straight line by least squares: slope, its standard error, mean."""
  x = hours - hours.mean()
  slope = (x @ values) / (x @ x)
  rest = values - values.mean() - slope * x
  error = np.sqrt((rest @ rest) / max(len(x) - 2, 1) / (x @ x))
  return {
    'per_hour': round(float(slope), 4),
    'error': round(float(error), 4),
    'mean': round(float(values.mean()), 3),
    'largest': float(values.max()),
  }


def table(record: dict[str, Any]) -> str:
  """The verdict for people."""
  rows = [f'{"":<18}{"mean":>10}{"per hour":>12}{"error":>9}{"largest":>10}']
  rows += [
    f'{name:<18}{slope["mean"]:10.1f}{slope["per_hour"]:12.3f}'
    f'{slope["error"]:9.3f}{slope["largest"]:10.1f}'
    for name, slope in record['slopes'].items()
  ]
  same = 'the same bits' if record['replayed_bitwise'] else 'OTHER bits'
  rows.append(
    f'{record["steps"]:,} steps in {record["hours"]:.2f} hours; the last ones, '
    f'repeated: {same}'
  )
  rows.append('; '.join(record['failures']) or 'nothing grows')
  return '\n'.join(rows)


def draw(record: dict[str, Any], path: pathlib.Path) -> None:
  """Memory, counts, checkpoints and steps over time."""
  samples = record['samples']
  minutes = [60 * sample['hours'] for sample in samples]
  picture = Figure(figsize=(10, 6.4), layout='constrained')
  memory, counts, disk, steps = picture.subplots(2, 2).flat
  colors = figures.COLORS
  processes = len(samples[0]['pss_mb'])
  for number in range(processes):
    name = f'worker {number - 1}' if number else 'main process'
    for kind, style in (('pss_mb', '-'), ('uss_mb', ':')):
      memory.plot(
        minutes,
        [sample[kind][number] for sample in samples],
        style,
        color=colors[number],
        label=f'{name}, {kind[:3].upper()}',
      )
    counts.plot(
      minutes,
      [sample['files'][number] for sample in samples],
      color=colors[number],
      label=f'{name}: open files',
    )
    counts.plot(
      minutes,
      [sample['threads'][number] for sample in samples],
      '--',
      color=colors[number],
      label=f'{name}: threads',
    )
  counts.plot(
    minutes,
    [sample['shared_memory'] for sample in samples],
    color=figures.INK,
    label='/dev/shm entries',
  )
  disk.plot(
    minutes, [s['checkpoint_mb'] for s in samples], color=colors[5], label='MB'
  )
  disk.plot(
    minutes,
    [s['checkpoints'] for s in samples],
    color=colors[3],
    label='folders',
  )
  steps.plot(minutes, [s['step'] for s in samples], color=colors[5])
  for axes, title in (
    (memory, 'memory (MB)'),
    (counts, 'open files, threads, shared memory'),
    (disk, 'checkpoints'),
    (steps, 'step'),
  ):
    axes.set_title(title, loc='left')
    axes.set_xlabel('minutes')
    axes.set_ylim(0, 1.35 * axes.get_ylim()[1])  # room for the legend
    axes.spines[['top', 'right']].set_visible(False)
    if axes is not steps:
      axes.legend(fontsize=7, frameon=False, ncols=2)
  figures.save(picture, path)
