"""Draws records of `python -m ijepa_jax.benchmark` as one picture.

  python -m ijepa_jax.benchmark.chart benchmarks/results --out=speed.png

Takes files, and directories, of which it draws the records that they hold. A
panel for each kind of measurement: medians as bars, quartiles as black lines;
of a comparison every pair is a dot. Dashed lines are this project's targets.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ijepa_jax import errors
from ijepa_jax.benchmark import report
from ijepa_jax.benchmark.panels import Panel, make_panels
from ijepa_jax.config import arguments
from ijepa_jax.visualize import figure as fig

_BLUE, _RED = '#0072B2', '#D55E00'
# Of the parts of a bar; told apart from each neighbour by lightness.
_PARTS = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#F0E442',
          '#999999', '#000000')  # fmt: skip
_WIDTH = 15.0  # inches, of two columns
_ROW, _FRAME = 0.28, 0.85  # height of a row, and around the rows of a panel
# Of what stands between a panel and its title, in points.
_LINE, _POINTS_PER_INCH = 11.0, 72
_LEGEND_COLUMNS = 4


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command.

  Args:
    argv: its arguments, default those of the process.

  Raises:
    UserError: a file is no record, or there is nothing to draw.
  """
  parser = arguments.Parser(
    prog='python -m ijepa_jax.benchmark.chart',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('paths', nargs='+', type=pathlib.Path, metavar='PATH')
  parser.add_argument('--out', required=True, type=pathlib.Path, metavar='PNG')
  args = parser.parse_args(argv)
  records = [record for path in args.paths for record in _records(path)]
  draw(args.out, records)
  print(args.out)


def _records(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """The record in a file, or all records in a directory."""
  if not path.is_dir():
    yield read(path)
    return
  for file in sorted(path.glob('*.json')):
    if _is_record(content := _json(file)):
      yield content


def read(path: pathlib.Path) -> dict[str, Any]:
  """The record in a file.

  Raises:
    UserError: there is none.
  """
  content = _json(path)
  if not _is_record(content):
    raise errors.UserError(
      f'{path}: expected what `python -m ijepa_jax.benchmark --json` writes'
    )
  return content


def _json(path: pathlib.Path) -> Any:
  try:
    return json.loads(path.read_text())
  except OSError as error:
    raise errors.UserError(f'{path}: {error.strerror}') from error
  except ValueError as error:
    raise errors.UserError(f'{path}: no JSON: {error}') from error


def _is_record(content: Any) -> bool:
  return isinstance(content, dict) and isinstance(content.get('results'), dict)


def draw(path: pathlib.Path, records: Sequence[dict[str, Any]]) -> None:
  """Draws the panels of all records in two columns.

  Args:
    path: of the PNG, written atomically.
    records: see `record`.

  Raises:
    UserError: nothing to draw, or the file cannot be written.
  """
  panels = make_panels(records)
  if not panels:
    raise errors.UserError(
      'nothing to draw: expected records of `python -m ijepa_jax.benchmark`'
    )
  # Read from top to bottom, first the left column, then the right one.
  total, above = sum(map(_height, panels)), 0.0
  columns: list[list[Panel]] = [[], []]
  for panel in panels:
    columns[above + _height(panel) / 2 > total / 2].append(panel)
    above += _height(panel)
  columns = [column for column in columns if column]
  height = max(sum(map(_height, column)) for column in columns)
  figure = Figure(
    figsize=(_WIDTH / 2 * len(columns), height), layout='constrained'
  )
  parts = figure.subfigures(1, len(columns), squeeze=False, wspace=0.03)[0]
  for part, column in zip(parts, columns):
    heights = [_height(panel) for panel in column]
    # What a column is shorter than the other stays empty, below.
    heights.append(height - sum(heights) + 1e-3)
    axes = part.subplots(len(heights), squeeze=False, height_ratios=heights)
    axes[-1, 0].set_axis_off()
    for axis, panel in zip(axes[:, 0], column):
      _draw(axis, panel)
  fig.save(figure, path)


def _height(panel: Panel) -> float:
  """Inches."""
  lines = sum(1 + bar.label.count('\n') for bar in panel.bars)
  return _FRAME + _ROW * lines + _above(panel) / _POINTS_PER_INCH


def _above(panel: Panel) -> float:
  """Points between a panel and its title: lines of legend and targets."""
  legend = -(-len(_parts(panel)) // _LEGEND_COLUMNS)
  return _LINE * (legend + len(panel.targets))


def _parts(panel: Panel) -> list[str]:
  """The names of what the bars of a panel are made of."""
  return list(dict.fromkeys(part for bar in panel.bars for part in bar.parts))


def _draw(axis: Axes, panel: Panel) -> None:
  axis.set_title(
    panel.title,
    loc='left',
    fontsize=11,
    color=fig.INK,
    weight='bold',
    pad=4 + _above(panel),
  )
  axis.set_xlabel(panel.unit, color=fig.MUTED, fontsize=9)
  axis.spines[['top', 'right', 'left']].set_visible(False)
  axis.spines['bottom'].set_color(fig.FAINT)
  axis.tick_params(colors=fig.MUTED, labelsize=9, length=0)
  axis.grid(axis='x', color=fig.FAINT, linewidth=0.5)
  axis.set_axisbelow(True)
  axis.xaxis.set_major_locator(MaxNLocator(6))
  axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:,.6g}'))

  largest = max(panel.targets.values(), default=0.0)
  _draw_bars(axis, panel)
  for row, bar in enumerate(panel.bars):
    axis.plot(bar.quartiles, [row] * len(bar.quartiles), color=fig.INK)
    axis.plot(bar.dots, [row] * len(bar.dots), '.', color=fig.INK, zorder=3)
    end = max(bar.value, *bar.quartiles, *bar.dots, 0.0)
    largest = max(largest, end)
    axis.annotate(
      report.number(bar.value), (end, row), (5, 0),
      textcoords='offset points', va='center', fontsize=9, color=fig.INK,
      bbox={'facecolor': 'white', 'edgecolor': 'none', 'pad': 0.5},
    )  # fmt: skip
  _draw_targets(axis, panel)
  labels = [bar.label for bar in panel.bars]
  axis.set_yticks(range(len(labels)), labels, color=fig.INK)
  axis.set_ylim(len(labels) - 0.5, -0.5)  # the first on top
  axis.set_xlim(0, 1.13 * largest)  # room for the numbers


def _draw_bars(axis: Axes, panel: Panel) -> None:
  """Bars of one colour, or made of parts with a legend."""
  rows = range(len(panel.bars))
  parts = _parts(panel)
  if not parts:
    axis.barh(rows, [bar.value for bar in panel.bars], 0.62, color=_BLUE)
    return
  left = [0.0] * len(panel.bars)
  for number, part in enumerate(parts):
    values = [bar.parts.get(part, 0.0) for bar in panel.bars]
    color = _PARTS[number % len(_PARTS)]
    axis.barh(rows, values, 0.62, left, color=color, label=part)
    left = [sum(both) for both in zip(left, values)]
  axis.legend(
    loc='lower left', bbox_to_anchor=(0, 1), borderaxespad=0, borderpad=0.1,
    ncols=_LEGEND_COLUMNS, fontsize=8, frameon=False, labelspacing=0.2,
    handlelength=1, columnspacing=1,
  )  # fmt: skip


def _draw_targets(axis: Axes, panel: Panel) -> None:
  """Dashed lines, named one above the other: some are close together."""
  first = _above(panel) - _LINE * len(panel.targets)
  for number, (name, value) in enumerate(panel.targets.items()):
    above = first + _LINE * number
    axis.axvline(value, color=_RED, linewidth=1.2, linestyle='--')
    axis.annotate(
      name, (value, 1), (2, above + 2), xycoords=('data', 'axes fraction'),
      textcoords='offset points', fontsize=8, color=_RED,
    )  # fmt: skip


if __name__ == '__main__':
  with errors.exit_cleanly():
    main(sys.argv[1:])
