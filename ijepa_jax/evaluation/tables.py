"""Results as tables: aligned for a console, and in Markdown."""

from collections.abc import Sequence

from ijepa_jax.evaluation.tasks.result import SHARES, Result

_HEADER = (
  'task',
  'label',
  'metric',
  'value',
  '95 % interval',
  'init',
  'pixels',
  'chance',
)
_TEXT_COLUMNS = 3


def console(results: Sequence[Result]) -> str:
  """The table for a terminal, columns aligned."""
  cells = [_HEADER, *(_row(result) for result in results)]
  widths = [max(map(len, column)) for column in zip(*cells)]
  lines = []
  before = ''
  for number, row in enumerate(cells):
    shown = list(row)
    if number > 1 and row[0] == before:
      shown[0] = ''  # of one task, its first line says it
    before = row[0]
    texts = [
      text.ljust(width) if column < _TEXT_COLUMNS else text.rjust(width)
      for column, (text, width) in enumerate(zip(shown, widths))
    ]
    lines.append('  '.join(texts).rstrip())
  rule = '-' * max(map(len, lines))
  return '\n'.join([lines[0], rule, *lines[1:]])


def markdown(results: Sequence[Result]) -> str:
  """The same as Markdown."""
  rule = ['---'] * _TEXT_COLUMNS + ['---:'] * (len(_HEADER) - _TEXT_COLUMNS)
  rows = [_HEADER, rule, *(_row(result) for result in results)]
  return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)


def _row(result: Result) -> tuple[str, ...]:
  def shown(value: float | None) -> str:
    return '-' if value is None else _number(value, result.metric)

  unit = ' %' if result.metric in SHARES else ''
  return (
    result.task,
    result.label,
    result.metric + unit,
    shown(result.value),
    f'{shown(result.low)} to {shown(result.high)}',
    shown(result.init),
    shown(result.pixels),
    shown(result.chance),
  )


def _number(value: float, metric: str) -> str:
  return f'{100 * value:.1f}' if metric in SHARES else f'{value:.3f}'
