"""The tables of a report."""

import json
import math
import shlex
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ijepa_jax.config import fields
from ijepa_jax.evaluation.tasks.result import SHARES
from ijepa_jax.metrics.progress import duration
from ijepa_jax.report import charts, strip
from ijepa_jax.report.markup import Html, table, tag
from ijepa_jax.run_files import Run

_NONE = '–'


def summary(runs: Sequence[Run]) -> Html:
  """What the runs are and how far they came: tiles, or a column per run."""
  facts: dict[str, Callable[[Run], str | None]] = {
    'Step': _step,
    'Loss': lambda run: _number(run.latest.get('train/loss')),
    'RankMe': lambda run: _change(run, 'health/rankme'),
    'LiDAR': lambda run: _change(run, 'health/lidar'),
    'Speed': _speed,
    'First to last row': _span,
    'Last checkpoint': lambda run: (
      f'step {run.checkpoints[-1]:,}' if run.checkpoints else None
    ),
    'Model': lambda run: run.config.get('model', {}).get('variant'),
    'Data': _data,
    'Devices': lambda run: run.starts[-1]['devices'] if run.starts else None,
  }
  if len(runs) > 1:
    rows = [
      [name, *(fact(run) or _NONE for run in runs)]
      for name, fact in facts.items()
    ]
    return table(['', *(run.name for run in runs)], rows, 'What was trained')
  tiles = [
    tag('div', tag('dt', name), tag('dd', text))
    for name, fact in facts.items()
    if (text := fact(runs[0]))
  ]
  return tag('dl', *tiles, class_='tiles')


def probes(runs: Sequence[Run]) -> Html:
  """Accuracy of online probes: pixels, before training and now."""
  labels = list(dict.fromkeys(name for run in runs for name in run.labels))
  if not labels:
    return tag('p', 'No labels, or no evaluation yet.', class_='missing')
  alone = len(runs) == 1  # baselines depend on a run's images
  head = ['label'] + (['chance', 'pixels'] if alone else [])
  for run in runs:
    of = '' if alone else f' {run.name}'
    head += [f'before training{of}', f'now{of}']
  rows = []
  for label in labels:
    for key, kind in (('knn', 'k-NN'), ('linear', 'linear')):
      name = f'probe/{label}/{key}'
      row: list[Any] = [f'{label}, {kind}']
      if alone:
        first = runs[0].first
        row.append(_percent(first.get(f'chance/{label}')))
        row.append(_percent(first.get(f'pixels/{name}')))
      for run in runs:
        row.append(_percent(run.first.get(name)))
        row.append(tag('b', _percent(run.latest.get(name))))
      rows.append(row)
  return table(head, rows, 'Accuracy of probes on held-out images')


def evaluation(runs: Sequence[Run]) -> Html:
  """Results of `ijepa_jax.evaluate`, with intervals and baselines."""
  parts: list[Any] = []
  for run in runs:
    if run.evaluation is None:
      continue
    if len(runs) > 1:
      parts.append(tag('h3', run.name))
    results = run.evaluation.get('results', [])
    parts += [
      table(
        ['', 'value', '95 % interval', 'init', 'pixels', 'chance', ''],
        [_result(result) for result in results],
        'On the test set',
      ),
      # Not in the caption, which is as wide as the table on a phone as well.
      tag('p', strip.legend(), class_='hint'),
      *(
        tag(
          'details',
          tag('summary', f'{name}: command, and what was selected'),
          _command(task.get('command')),
          _json_block([r for r in results if r['task'] == name]),
        )
        for name, task in run.evaluation.get('tasks', {}).items()
      ),
    ]
  return tag('div', parts) if parts else _absent('evaluate', '--data=SOURCE')


def compared(runs: Sequence[Run]) -> Html | None:
  """Results of several runs side by side; None where there are none."""
  found: dict[tuple[str, str, str], dict[str, str]] = {}
  for run in runs:
    for result in (run.evaluation or {}).get('results', []):
      key = result['task'], result['label'], result['metric']
      value = f'{_value(result, "value")} ({_interval(result)})'
      found.setdefault(key, {})[str(run.path)] = value
  if not found:
    return None
  return table(
    ['', *(run.name for run in runs)],
    [
      [_title(*key), *(values.get(str(run.path), _NONE) for run in runs)]
      for key, values in found.items()
    ],
    'Evaluations side by side, with 95 % intervals',
  )


def config(runs: Sequence[Run]) -> Html:
  """Fields that differ from the defaults, or between runs; then all fields."""
  flat = [fields.flatten(run.config) for run in runs]
  names = list(dict.fromkeys(name for values in flat for name in values))
  defaults = fields.flatten(fields.defaults().to_dict())
  head = ['field', *(run.name for run in runs)]

  def cells(name: str) -> list[Any]:
    return [name, *(_json(values.get(name)) for values in flat)]

  if len(runs) > 1:
    chosen = [name for name in names if len(set(cells(name)[1:])) > 1]
    caption = 'Fields that differ'
  else:
    chosen = [
      name for name in names if _json(defaults.get(name)) != cells(name)[1]
    ]
    caption = 'Fields that differ from the defaults (ViT-H/14)'
  every = table(head, [cells(name) for name in names], 'All fields')
  return tag(
    'div',
    table(head, [cells(name) for name in chosen], caption)
    if chosen
    else tag('p', 'None differs.'),
    tag('details', tag('summary', f'All {len(names)} fields'), every),
  )


def starts(run: Run) -> Html:
  """How a run was started, each time: command, machine, versions."""
  if not run.starts:
    return tag(
      'p', 'Not recorded: the run is older than starts.jsonl.',
      class_='missing',
    )  # fmt: skip
  parts = []
  for start in run.starts:
    moment = time.strftime('%Y-%m-%d %H:%M', time.localtime(start['time']))
    facts = {
      'Host': start['host'],
      'Directory': start['directory'],
      'Devices': start['devices'],
      'Processes': start['processes'],
      'Data': f'{start["data"]["name"]}, {start["data"]["epoch_length"]:,}',
      **{f'${name}': value for name, value in start['variables'].items()},
      **start['versions'],
    }
    parts.append(
      tag(
        'details',
        tag('summary', f'{moment}, from step {start["step"]:,}'),
        _command(start['command']),
        table(['', ''], [[k, str(v)] for k, v in facts.items()]),
        open=start is run.starts[-1],
      )
    )
  return tag('div', parts)


def command_line(words: Sequence[str] | str) -> str:
  """A command as one would type it."""
  return words if isinstance(words, str) else shlex.join(map(str, words))


def _command(words: Sequence[str] | str | None) -> Html | None:
  if not words:
    return None
  return tag('pre', tag('code', command_line(words)), tabindex=0)


def _json_block(content: Any) -> Html:
  return tag('pre', tag('code', json.dumps(content, indent=2)), tabindex=0)


def _absent(command: str, more: str) -> Html:
  return tag(
    'p',
    'None yet: ',
    tag('code', f'python -m ijepa_jax.{command} --checkpoint=RUN {more}'),
    class_='missing',
  )


def _title(task: str, label: str, metric: str) -> str:
  return f'{task} {metric}, {label}'


def _result(result: Mapping[str, Any]) -> list[Any]:
  return [
    _title(result['task'], result['label'], result['metric']),
    tag('b', _value(result, 'value')),
    _interval(result),
    *(_value(result, name) for name in ('init', 'pixels', 'chance')),
    strip.draw(result) if result['metric'] in SHARES else '',
  ]


def _value(result: Mapping[str, Any], name: str) -> str:
  value = result.get(name)
  return (_percent if result['metric'] in SHARES else _number)(value)


def _interval(result: Mapping[str, Any]) -> str:
  low, high = _value(result, 'low'), _value(result, 'high')
  return f'{low} to\N{NO-BREAK SPACE}{high}'


def _number(value: float | None) -> str:
  if value is None or not math.isfinite(value):
    return _NONE
  return charts.show(value)


def _percent(value: float | None) -> str:
  if value is None or not math.isfinite(value):
    return _NONE
  return charts.show(value, percent=True)


def _json(value: Any) -> str:
  return json.dumps(value)


def _change(run: Run, name: str) -> str | None:
  if name not in run.latest:
    return None
  before = f', {_number(run.first.get(name))} before training'
  return _number(run.latest[name]) + (before if name in run.first else '')


def _data(run: Run) -> str | None:
  if run.starts:
    return run.starts[-1]['data']['name']
  return run.config.get('data', {}).get('source')


def _step(run: Run) -> str:
  total = f' of {run.total_steps:,}' if run.total_steps else ''
  return f'{run.step:,}{total}'


def _speed(run: Run) -> str | None:
  rates = [
    row['train/images_per_second']
    for row in run.rows
    if 'train/images_per_second' in row
  ]
  return f'{statistics.median(rates):,.0f} images/s' if rates else None


def _span(run: Run) -> str | None:
  times = [row['time'] for row in run.rows if 'time' in row]
  return duration(max(times) - min(times)) if times else None
