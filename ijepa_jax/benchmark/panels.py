"""What a chart of benchmark records shows: panels of bars, and the targets."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

# What this project aims at, by panel; README says what is reached.
_HOST_MS = 5.0
_SAVE_SHARE = 1.0  # % of the time, at a save every 1,000 steps
_IMPORT_SECONDS = 2.0
# Of the bare loop: in 'exact' mode, and in 'fast'.
_SHARE, _SHARE_WORKERS, _SHARE_FAST = 0.9, 0.85, 1.1
_RATIOS = {  # against the authors' code on a CPU
  'images per second': ('Training step', 1.6),
  'samples per second': ('Masks', 30.0),
}

# Of a bar; what is less is not shown by itself.
_VISIBLE = 0.04

Record = Mapping[str, Any]


class Bar(NamedTuple):
  """A row of a panel."""

  label: str
  value: float
  quartiles: Sequence[float] = ()
  dots: Sequence[float] = ()
  parts: Mapping[str, float] = {}  # that `value` is the sum of


class Panel(NamedTuple):
  """Bars of one unit."""

  title: str
  unit: str
  bars: list[Bar]
  targets: Mapping[str, float] = {}  # words: where


def make_panels(records: Sequence[Record]) -> list[Panel]:
  """A panel for each kind of measurement that there is.

  Args:
    records: see `record`.
  """

  def of(kind: str) -> list[Record]:
    return [record for record in records if kind in record['results']]

  makers: list[tuple[str, Callable[[list[Record]], Iterator[Panel]]]] = [
    ('comparison', _comparisons),
    ('step', _steps),
    ('input', _input),
    ('masks', _masks),
    ('startup', _startup),
    ('checkpoint', _checkpoint),
  ]
  panels = (
    panel for kind, make in makers if of(kind) for panel in make(of(kind))
  )
  return [panel for panel in panels if panel.bars]


def _comparisons(records: list[Record]) -> Iterator[Panel]:
  """A panel for each unit, because the ratios differ so much."""
  for unit, (what, target) in _RATIOS.items():
    yield Panel(
      f'{what} against another program, in turns',
      f'ratio of {unit}, ours over theirs; a dot for each pair',
      [
        Bar(
          _against(record, result),
          result['ratio']['median'],
          dots=[pair['ratio'] for pair in result['pairs']],
        )
        for record in records
        if (result := record['results']['comparison'])['unit'] == unit
      ],
      {'equal': 1.0, f'target {target:g}': target},
    )


def _against(record: Record, result: Mapping[str, Any]) -> str:
  """What was timed, and what the other program says that it used."""
  said = result['pairs'][0]['said']
  used = ', '.join(option for option, value in said.items() if value is True)
  results = record['results']
  if 'step' in results:
    name = _step_name(record)
  else:
    name = _case(results['masks']['cases'][0])
  return f'{name}\nagainst {used}' if used else name


def _step_name(record: Record) -> str:
  """The model, its batch, and what was preloaded."""
  names = [_short(record['results']['step']['name'])]
  return ', '.join(names + record['machine'].get('preloaded', []))


def _steps(records: list[Record]) -> Iterator[Panel]:
  named = [
    (
      f'{_step_name(record)}, {record["machine"]["device_kind"]}',
      record['results']['step'],
    )
    for record in records
  ]
  yield Panel(
    'Training step',
    'images per second',
    [_bar(name, result['images_per_second']) for name, result in named],
  )
  yield Panel(
    'Work of the host in a training step, beside the device',
    'milliseconds per step',
    [_stacked(name, _milliseconds(result)) for name, result in named],
    {f'target {_HOST_MS:g} ms': _HOST_MS},
  )


def _milliseconds(result: Mapping[str, Any]) -> dict[str, float]:
  return {
    name.replace('_', ' '): 1e3 * spread['median']
    for name, spread in result['host_seconds_per_step'].items()
  }


def _input(records: list[Record]) -> Iterator[Panel]:
  results = [record['results']['input'] for record in records]
  yield Panel(
    'Input pipeline, files to batches with masks',
    'images per second of CPU time, as a multiple of a bare Pillow loop alone',
    [bar for result in results for bar in _shares(result)],
    {
      f'target, exact, with workers: {_SHARE_WORKERS}': _SHARE_WORKERS,
      f'target, exact, 0 workers: {_SHARE}': _SHARE,
      f'target, fast: {_SHARE_FAST}': _SHARE_FAST,
    },
  )
  yield Panel(
    'Input pipeline, what an image costs',
    'microseconds of CPU time per image, 0 workers',
    [
      _stacked(_input_name(result), _microseconds(result)) for result in results
    ],
  )


def _shares(result: Mapping[str, Any]) -> Iterator[Bar]:
  for workers, rate in result['workers'].items():
    plural = '' if workers == '1' else 's'
    name = f'{_input_name(result)}, {workers} worker{plural}'
    yield _bar(name, rate['share'])


def _input_name(result: Mapping[str, Any]) -> str:
  return f'{result["source"]}, {result["decode"]}'


def _microseconds(result: Mapping[str, Any]) -> dict[str, float]:
  return {
    name: max(0.0, stage['cpu']['median'])  # a rest may be less than nothing
    for name, stage in result['stages'].items()
    if stage is not None
  }


def _masks(records: list[Record]) -> Iterator[Panel]:
  held = [record['results'] for record in records]
  cases = [
    case
    for results in held
    # Those of a comparison are in its panel.
    if results.get('comparison', {}).get('unit') != 'samples per second'
    for case in results['masks']['cases']
    if case['keep'] == 'first'  # the default, of the published masks
  ]
  yield Panel(
    'Mask sampler, one context and its targets',
    'thousands of samples per second of CPU time',
    [
      Bar(
        _case(case),
        case['median'] / 1e3,
        [value / 1e3 for value in case['quartiles']],
      )
      for case in cases
    ],
  )


def _case(case: Mapping[str, Any]) -> str:
  return (
    f'{case["image_size"]}/{case["patch_size"]} pixels, batch '
    f'{case["batch_size"]}'
  )


def _startup(records: list[Record]) -> Iterator[Panel]:
  results = [record['results']['startup'] for record in records]
  yield Panel(
    'Imports',
    'seconds',
    [
      Bar(f'import {name}', seconds)
      for name, seconds in results[0]['import'].items()
    ],
    {f'target {_IMPORT_SECONDS:g} s': _IMPORT_SECONDS},
  )
  yield Panel(
    'Start of a run to the end of its first step',
    'seconds',
    [
      _stacked(f'{_short(start["name"])}, cache {cache}', start['seconds'])
      for result in results
      for cache, start in result['first_step'].items()
    ],
  )


def _checkpoint(records: list[Record]) -> Iterator[Panel]:
  results = [record['results']['checkpoint'] for record in records]
  yield Panel(
    f'Time lost to a save every {results[0]["every"]:,} steps',
    '% of the wall time',
    [
      Bar(
        _short(result['name']),
        100 * result['lost_share']['median'],
        [100 * value for value in result['lost_share']['quartiles']],
      )
      for result in results
    ],
    {f'target {_SAVE_SHARE:g} %': _SAVE_SHARE},
  )


def _bar(label: str, spread: Mapping[str, Any]) -> Bar:
  return Bar(label, spread['median'], spread['quartiles'])


def _stacked(label: str, parts: Mapping[str, float]) -> Bar:
  """A bar made of its parts; those that nobody would see are one."""
  whole = sum(parts.values())
  large = {k: v for k, v in parts.items() if v >= _VISIBLE * whole}
  rest = whole - sum(large.values())
  if len(large) < len(parts):
    large['other'] = rest
  return Bar(label, whole, parts=large)


def _short(name: str) -> str:
  """The model and its batch, of the name of a step."""
  return ', '.join(name.partition(';')[0].split(', ')[:2])
