"""How a config scales: a plan for each of many numbers of devices."""

import os
import time
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator
from ml_collections import ConfigDict

from ijepa_jax import errors
from ijepa_jax.benchmark import report
from ijepa_jax.plan import plan
from ijepa_jax.plan.predict import Assumed
from ijepa_jax.plan.step import compile_step
from ijepa_jax.visualize import figure as fig

_PARTS = ('compute', 'memory', 'network')
_PART_COLORS = ('#0072B2', '#009E73', '#D55E00')


def make(
  config: ConfigDict, devices: Sequence[int], assumed: Assumed
) -> list[dict[str, Any]]:
  """Plans by number of devices, without those that the batch does not fit.

  Args:
    config: from `plan.prepare`; -1 in its mesh takes what is there.
    devices: numbers to try.
    assumed: accelerator, utilisation, training images.

  Raises:
    UserError: none is possible.
  """
  rows = []
  start = time.perf_counter()
  for done, count in enumerate(devices):
    try:
      step = compile_step(config, count, assumed.accelerator.near)
    except errors.UserError as error:
      report.say(f'plan: {count} devices left out: {error}')
      continue
    rows.append(plan.of_step(config, step, assumed))
    passed = time.perf_counter() - start
    left = passed / (done + 1) * (len(devices) - done - 1)
    report.say(
      f'plan: {count} devices, {passed:.0f} s, about {left:.0f} s left'
    )
  if not rows:
    raise errors.UserError(
      f'no plan for {", ".join(map(str, devices))} devices: see above'
    )
  for row in rows:
    row['efficiency'] = _per_device(row) / _per_device(rows[0])
  return rows


def _per_device(row: dict[str, Any]) -> float:
  return row['images_per_second'] / row['devices']


def table(rows: Sequence[dict[str, Any]]) -> str:
  """The result of `make` for people."""
  cells: list[Sequence[str]] = [
    (
      'devices', 'mesh', 'images', 'peak', 'step', 'images/s', 'efficiency',
      'days', 'device hours', 'binds',
    )
  ]  # fmt: skip
  for row in rows:
    days, hours = row['days'], row['device_hours']
    cells.append(
      (
        str(row['devices']),
        ' x '.join(map(str, row['mesh'].values())),
        str(row['images']),
        report.size(row['peak_bytes']) + ('' if row['fits'] else ' too much'),
        report.seconds(row['seconds']['step']),
        report.number(row['images_per_second']),
        f'{row["efficiency"]:.0%}',
        report.number(days) if days else '-',
        report.number(hours) if hours else '-',
        row['binds'],
      )
    )
  return report.columns(cells)


def draw(
  path: str | os.PathLike, rows: Sequence[dict[str, Any]], assumed: Assumed
) -> None:
  """Draws images per second, and what a step is made of, over devices.

  Args:
    path: of the PNG, written atomically.
    rows: from `make`.
    assumed: named in the titles.

  Raises:
    UserError: the file cannot be written.
  """
  figure = Figure(figsize=(11, 4.4), layout='constrained')
  rate, parts = figure.subplots(1, 2)
  devices = [row['devices'] for row in rows]
  rates = [row['images_per_second'] for row in rows]
  for axis, title in (
    (rate, 'images per second'),
    (parts, 'seconds of a step'),
  ):
    axis.set_title(
      f'{title}, {assumed.name} at {assumed.utilisation:.0%}',
      loc='left', fontsize=10, color=fig.INK, weight='bold',
    )  # fmt: skip
    axis.set_xlabel('devices', color=fig.MUTED, fontsize=9)
    axis.set_xscale('log', base=2)
    axis.set_yscale('log')
    axis.set_xticks(devices)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:.0f}'))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f'{y:,.6g}'))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.spines[['top', 'right']].set_visible(False)
    axis.spines[['left', 'bottom']].set_color(fig.FAINT)
    axis.tick_params(colors=fig.MUTED, labelsize=8)
    axis.grid(color=fig.FAINT, linewidth=0.5)

  ideal = [rates[0] * count / devices[0] for count in devices]
  rate.plot(devices, ideal, '--', color=fig.MUTED, linewidth=1, label='linear')
  rate.plot(devices, rates, 'o-', color=_PART_COLORS[0], label='predicted')
  for row in rows:
    if not row['fits']:
      rate.annotate(
        'does not fit', (row['devices'], row['images_per_second']), (8, -4),
        textcoords='offset points', fontsize=8, color=_PART_COLORS[2],
      )  # fmt: skip
  for name, color in zip(_PARTS, _PART_COLORS):
    values = [row['seconds'][name] for row in rows]
    parts.plot(devices, values, 'o-', color=color, label=name)
  whole = [row['seconds']['step'] for row in rows]
  parts.plot(devices, whole, '-', color=fig.INK, linewidth=1, label='step')
  for axis in (rate, parts):
    axis.legend(frameon=False, fontsize=8, labelcolor=fig.INK)
  fig.save(figure, path)
