"""Draws records of `python -m ijepa_jax.benchmark` as one picture.

  python -m ijepa_jax.benchmark.chart benchmarks/results/*.json --out=speed.png

One panel for each kind of measurement that the files hold, with the medians as
bars and the quartiles as lines; of a comparison every pair is a dot.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ijepa_jax import errors
from ijepa_jax.benchmark import report
from ijepa_jax.visualize import figure as fig

_BLUE, _RED = '#0072B2', '#D55E00'
_WIDTH = 10.0  # inches
_ROW, _FRAME = 0.34, 1.05  # height of a row, and around the rows of a panel


class Bar(NamedTuple):
  """A row of a panel."""

  label: str
  value: float
  quartiles: Sequence[float] = ()
  dots: Sequence[float] = ()


class Panel(NamedTuple):
  """Bars of one unit."""

  title: str
  unit: str
  bars: list[Bar]
  line: float | None = None  # where both are equal


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command.

  Args:
    argv: its arguments, default those of the process.

  Raises:
    UserError: a file is no record, or holds nothing to draw.
  """
  parser = argparse.ArgumentParser(
    prog='python -m ijepa_jax.benchmark.chart',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('files', nargs='+', type=pathlib.Path, metavar='FILE')
  parser.add_argument('--out', required=True, type=pathlib.Path, metavar='PNG')
  args = parser.parse_args(argv)
  draw(args.out, [read(path) for path in args.files])
  print(args.out)


def read(path: pathlib.Path) -> dict[str, Any]:
  """The record in a file.

  Raises:
    UserError: there is none.
  """
  try:
    record = json.loads(path.read_text())
  except OSError as error:
    raise errors.UserError(f'{path}: {error.strerror}') from error
  except ValueError as error:
    raise errors.UserError(f'{path}: no JSON: {error}') from error
  if not isinstance(record, dict) or not isinstance(
    record.get('results'), dict
  ):
    raise errors.UserError(
      f'{path}: expected what `python -m ijepa_jax.benchmark --json` writes'
    )
  return record


def draw(path: pathlib.Path, records: Sequence[Mapping[str, Any]]) -> None:
  """Draws the panels of all records, one below the other.

  Args:
    path: of the PNG, written atomically.
    records: see `record`.

  Raises:
    UserError: nothing to draw, or the file cannot be written.
  """
  panels = list(_panels(records))
  if not panels:
    raise errors.UserError(
      'nothing to draw: expected results of step, --vs, input, masks or startup'
    )
  heights = [_FRAME + _ROW * len(panel.bars) for panel in panels]
  figure = Figure(figsize=(_WIDTH, sum(heights)), layout='constrained')
  axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[
    :, 0
  ]
  for axis, panel in zip(axes, panels):
    _draw(axis, panel)
  fig.save(figure, path)


def _panels(records: Sequence[Mapping[str, Any]]) -> Iterator[Panel]:
  """A panel for each kind that there is."""

  def found(kind: str) -> list[tuple[Mapping[str, Any], Any]]:
    held = [(record, record['results']) for record in records]
    return [(record, inner[kind]) for record, inner in held if kind in inner]

  if comparisons := found('comparison'):
    yield Panel(
      'Training step against another program',
      'ratio of images per second, pair by pair',
      [
        Bar(
          _against(
            record['results']['step']['name'], result['pairs'][0]['said']
          ),
          result['ratio']['median'],
          dots=[pair['ratio'] for pair in result['pairs']],
        )
        for record, result in comparisons
      ],
      line=1.0,
    )
  if steps := found('step'):
    yield Panel(
      'Training step',
      'images per second',
      [
        _bar(
          f'{_short(result["name"])}, {record["machine"]["device_kind"]}',
          result['images_per_second'],
        )
        for record, result in steps
      ],
    )
  if masks := found('masks'):
    yield Panel(
      'Mask sampler',
      masks[0][1]['unit'],
      [
        _bar(
          f'{case["image_size"]}/{case["patch_size"]} {case["keep"]}, batch '
          f'{case["batch_size"]}',
          case,
        )
        for _, result in masks
        for case in result['cases']
      ],
    )
  if inputs := found('input'):
    yield Panel(
      'Input pipeline',
      'images per second of CPU time',
      [bar for _, result in inputs for bar in _input_rates(result)],
    )
    for _, result in inputs:
      yield Panel(
        f'Input pipeline by stage: {_input_name(result)}',
        'microseconds of CPU time per image',
        [
          _bar(name, stage['cpu'])
          for name, stage in result['stages'].items()
          if stage is not None
        ],
      )
  for _, result in found('startup'):
    yield Panel(
      'Start of a run, by compilation cache',
      'seconds to the end of the first step',
      [
        Bar(f'cache {cache}', start['total'])
        for cache, start in result['first_step'].items()
      ],
    )


def _bar(label: str, spread: Mapping[str, Any]) -> Bar:
  return Bar(label, spread['median'], spread['quartiles'])


def _against(name: str, said: Mapping[str, Any]) -> str:
  """Our step, and what the other program says that it used."""
  used = ', '.join(option for option, value in said.items() if value is True)
  return f'{_short(name)}\nagainst {used}' if used else _short(name)


def _input_name(result: Mapping[str, Any]) -> str:
  return f'{result["source"]}, decode={result["decode"]}'


def _input_rates(result: Mapping[str, Any]) -> Iterator[Bar]:
  """The bare loop and the pipeline beside it."""
  name = _input_name(result)
  yield _bar(f'{name}: bare Pillow loop', result['bare']['cpu'])
  for workers, rate in result['workers'].items():
    plural = '' if workers == '1' else 's'
    yield _bar(f'{name}: {workers} worker{plural}', rate['cpu'])


def _short(name: str) -> str:
  """The model and its batch, of the name of a step."""
  return ', '.join(name.partition(';')[0].split(', ')[:2])


def _draw(axis: Axes, panel: Panel) -> None:
  axis.set_title(
    panel.title, loc='left', fontsize=10, color=fig.INK, weight='bold'
  )
  axis.set_xlabel(panel.unit, color=fig.MUTED, fontsize=8)
  axis.spines[['top', 'right', 'left']].set_visible(False)
  axis.spines['bottom'].set_color(fig.FAINT)
  axis.tick_params(colors=fig.MUTED, labelsize=8, length=0)
  axis.grid(axis='x', color=fig.FAINT, linewidth=0.5)
  axis.set_axisbelow(True)
  axis.xaxis.set_major_locator(MaxNLocator(6))
  axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:,.6g}'))

  rows = range(len(panel.bars))
  axis.barh(rows, [bar.value for bar in panel.bars], 0.6, color=_BLUE)
  largest = 0.0
  for row, bar in zip(rows, panel.bars):
    if bar.quartiles:
      axis.plot(bar.quartiles, [row, row], color=fig.INK, linewidth=1.2)
    if bar.dots:
      axis.plot(
        bar.dots, [row] * len(bar.dots), '.', color=fig.INK, markersize=5
      )
    end = max(bar.value, *bar.quartiles, *bar.dots, 0.0)
    largest = max(largest, end)
    axis.annotate(
      report.number(bar.value), (end, row), (5, 0),
      textcoords='offset points', va='center', fontsize=8, color=fig.INK,
    )  # fmt: skip
  if panel.line is not None:
    axis.axvline(panel.line, color=_RED, linewidth=1, linestyle='--')
  axis.set_yticks(rows, [bar.label for bar in panel.bars], color=fig.INK)
  axis.set_ylim(len(panel.bars) - 0.5, -0.5)  # the first on top
  axis.set_xlim(0, 1.12 * largest)  # room for the numbers


if __name__ == '__main__':
  with errors.exit_cleanly():
    main(sys.argv[1:])
