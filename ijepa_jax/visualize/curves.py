"""A picture of a run: loss, health, probes and schedules over its steps."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import (
  FuncFormatter,
  LogLocator,
  MaxNLocator,
  NullLocator,
  PercentFormatter,
)

from ijepa_jax.metrics import series
from ijepa_jax.visualize import figure as fig

Figures = Mapping[str, float]

_BLUE, _RED = '#0072B2', '#D55E00'
_PROBES = (('knn', 'k-NN', _BLUE), ('linear', 'linear', _RED))
_LABELS_PER_ROW = 4
# Of fewer points each is marked: a single one would not be seen.
_MARKED = 40


def draw_curves(
  path: str | os.PathLike,
  rows: Sequence[Figures],
  *,
  chance: Figures | None = None,
  pixels: Figures | None = None,
) -> None:
  """Draws the curves of a run; what no row has is shown as not measured.

  Args:
    path: of the PNG, written atomically.
    rows: of metrics.jsonl (`metrics.writers.read_metrics`).
    chance: label -> share of the commonest class, 0..1.
    pixels: probe/LABEL/{knn,linear} of raw pixels, 0..1.
  """
  labels = [
    name.removeprefix('probe/').removesuffix('/linear')
    for name in _names(rows)
    if name.startswith('probe/') and name.endswith('/linear')
  ]
  columns = min(len(labels), _LABELS_PER_ROW)
  label_rows = math.ceil(len(labels) / _LABELS_PER_ROW)
  heights = [2.9, 2.5] + ([0.35] + [2.5] * label_rows if labels else []) + [1.8]
  figure = Figure(
    figsize=(12.5, sum(heights)),
    layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1),
  )
  # 12 columns divide into halves, thirds and quarters.
  grid = figure.add_gridspec(len(heights), 12, height_ratios=heights)

  _draw_loss(figure.add_subplot(grid[0, :6]), rows)
  for name, title, unit, place in (
    ('health/rankme', 'RankMe', 'directions in use', grid[0, 6:9]),
    ('health/feature_std', 'Feature deviation', 'over images', grid[0, 9:]),
  ):
    _draw_figure(figure.add_subplot(place), rows, name, title, unit)

  _draw_figure(
    figure.add_subplot(grid[1, :3]), rows, 'health/lidar', 'LiDAR',
    'directions that tell images apart',
  )  # fmt: skip
  for name, title, unit, place in (
    ('rankme_block', 'RankMe by block', 'directions in use', grid[1, 3:6]),
    ('attention_entropy', 'Attention entropy', 'of its maximum', grid[1, 6:9]),
  ):
    _draw_blocks(figure.add_subplot(place), rows, name, title, unit)
  _draw_figure(
    figure.add_subplot(grid[1, 9:]), rows, 'health/image_cosine',
    'Image cosine', 'mean over pairs',
  )  # fmt: skip

  for i, label in enumerate(labels):
    row, column = divmod(i, columns)
    left, right = 12 * column // columns, 12 * (column + 1) // columns
    axis = figure.add_subplot(grid[3 + row, left:right])
    _draw_probes(axis, rows, label, chance or {}, pixels or {})
    if column == 0:
      axis.set_ylabel('held-out accuracy', color=fig.MUTED, fontsize=8)
    if i == 0:
      legend = figure.add_subplot(grid[2, :])
      legend.set_axis_off()
      legend.legend(
        *axis.get_legend_handles_labels(),
        loc='center',
        ncols=7,
        frameon=False,
        fontsize=8,
        labelcolor=fig.INK,
      )

  for i, (name, title) in enumerate(
    (
      ('train/lr', 'Learning rate'),
      ('train/weight_decay', 'Weight decay'),
      ('train/momentum', 'EMA momentum'),
    )
  ):
    axis = figure.add_subplot(grid[-1, 4 * i : 4 * i + 4])
    _draw_figure(axis, rows, name, title, '', color=fig.MUTED)
    axis.set_xlabel('step', color=fig.MUTED, fontsize=8)
  fig.save(figure, path)


def _names(rows: Sequence[Figures]) -> list[str]:
  """All names in the rows, in the order in which they appear."""
  return list(dict.fromkeys(name for row in rows for name in row))


def _panel(axis: Axes, title: str, unit: str) -> None:
  axis.set_title(title, loc='left', fontsize=10, color=fig.INK, weight='bold')
  axis.set_ylabel(unit, color=fig.MUTED, fontsize=8)
  axis.spines[['top', 'right']].set_visible(False)
  axis.spines[['left', 'bottom']].set_color(fig.FAINT)
  axis.tick_params(colors=fig.MUTED, labelsize=8, length=0)
  axis.grid(color=fig.FAINT, linewidth=0.5)
  axis.set_axisbelow(True)
  axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
  axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:,.0f}'))
  axis.yaxis.set_major_formatter(_plain)
  axis.margins(x=0.02)


def _plain(value: float, _position: float) -> str:
  """A tick's text: 0.00025, never 2.5e-4 with an offset in the corner."""
  return f'{value:.6g}'


def _line(
  axis: Axes,
  steps: np.ndarray,
  values: np.ndarray,
  *,
  color: Any = _BLUE,
  width: float = 1.6,
  **style: Any,
) -> None:
  axis.plot(
    steps, values, color=color, linewidth=width, markersize=3,
    marker='o' if len(values) < _MARKED else '', **style,
  )  # fmt: skip


def _draw_loss(axis: Axes, rows: Sequence[Figures]) -> None:
  _panel(axis, 'Loss', '')
  steps, loss = series.of(rows, 'train/loss')
  if not len(loss):
    _say_missing(axis)
    return
  _line(axis, steps, loss, alpha=0.35, width=0.8, label='raw')
  _line(axis, steps, series.smooth(loss), width=1.8, label='smoothed')
  axis.set_xlabel('step', color=fig.MUTED, fontsize=8)
  axis.legend(frameon=False, fontsize=8, labelcolor=fig.INK)
  if loss.min() > 0:
    axis.set_yscale('log')
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.yaxis.set_major_formatter(_plain)
    axis.yaxis.set_minor_locator(NullLocator())


def _draw_figure(
  axis: Axes,
  rows: Sequence[Figures],
  name: str,
  title: str,
  unit: str,
  color: str = _BLUE,
) -> None:
  _panel(axis, title, unit)
  steps, values = series.of(rows, name)
  if not len(values):
    _say_missing(axis)
    return
  _line(axis, steps, values, color=color)


def _draw_blocks(
  axis: Axes, rows: Sequence[Figures], name: str, title: str, unit: str
) -> None:
  """One line per block, the darker the later, the first and last named."""
  _panel(axis, title, unit)
  names = series.blocks(rows, name)
  shades = matplotlib.colormaps['viridis_r']
  for i, block in enumerate(names):
    steps, values = series.of(rows, block)
    ends = i in (0, len(names) - 1)
    _line(
      axis, steps, values, width=1.4,
      color=shades(0.15 + 0.85 * i / max(1, len(names) - 1)),
      label=f'block {block.rsplit("/", 1)[1]}' if ends else None,
    )  # fmt: skip
  if names:
    axis.legend(frameon=False, fontsize=8, labelcolor=fig.INK)
  else:
    _say_missing(axis)


def _draw_probes(
  axis: Axes,
  rows: Sequence[Figures],
  label: str,
  chance: Figures,
  pixels: Figures,
) -> None:
  _panel(axis, f'Probes of "{label}"', '')
  axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
  for probe, title, color in _PROBES:
    key = f'probe/{label}/{probe}'
    steps, values = series.of(rows, key)
    _line(axis, steps, values, color=color, label=title)
    baselines = []
    if len(values) and steps[0] == 0:
      baselines.append((values[0], ':', 'before training'))
    if key in pixels:
      baselines.append((pixels[key], '--', 'of pixels'))
    for value, style, what in baselines:
      axis.axhline(
        value, color=color, linestyle=style, linewidth=1, alpha=0.7,
        label=f'{title} {what}',
      )  # fmt: skip
  if label in chance:
    axis.axhline(
      chance[label], linestyle='--', color=fig.MUTED, linewidth=1,
      label='chance',
    )  # fmt: skip


def _say_missing(axis: Axes) -> None:
  axis.text(
    0.5, 0.5, 'not measured', transform=axis.transAxes, ha='center',
    color=fig.MUTED, fontsize=8,
  )  # fmt: skip
  axis.set(xticks=[], yticks=[])
