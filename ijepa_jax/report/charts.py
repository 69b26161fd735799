"""A line chart as inline SVG, with what the page's script needs to read it.

Charts are drawn at the size of a phone's screen and scaled a little up, so that
their text is as legible there as on a desktop.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence

from ijepa_jax.report.markup import Html, tag

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 420, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 412, 8, 212

# More points than pixels would only make the file large.
_MAX_POINTS = 300


@dataclasses.dataclass(frozen=True)
class Series:
  """A curve.

  Attributes:
    label: in the legend and beside values.
    points: (step, value), values finite.
    style: CSS classes, such as 'c0'.
  """

  label: str
  points: Points
  style: str = 'c0'


@dataclasses.dataclass(frozen=True)
class Level:
  """A horizontal line."""

  label: str
  value: float
  style: str = 'muted'


@dataclasses.dataclass(frozen=True)
class Band:
  """Where a figure would be bad.

  Attributes:
    side: 'below' the limit, or 'above' it.
    limits: (step, limit), finite.
  """

  side: str
  limits: Points


@dataclasses.dataclass(frozen=True)
class Chart:
  """What to draw.

  Attributes:
    title: of the panel.
    note: what the figure means, in a few words.
    series: the curves, one of them not empty.
    levels: baselines.
    bands: health bands.
    log: whether the scale is logarithmic; all values must be positive.
    percent: whether values are shares.
  """

  title: str
  note: str
  series: Sequence[Series]
  levels: Sequence[Level] = ()
  bands: Sequence[Band] = ()
  log: bool = False
  percent: bool = False


def draw(chart: Chart) -> Html:
  """The chart as a `<figure>`."""
  curves = [
    dataclasses.replace(curve, points=thin(curve.points))
    for curve in chart.series
    if curve.points
  ]
  heading = tag('figcaption', tag('h3', chart.title), tag('p', chart.note))
  x, y, ticks = _scales(chart, curves)
  drawn = [
    *_grid(x, y, ticks, chart),
    *(_area(band, x, y) for band in chart.bands if band.limits),
    *(
      tag(
        'line', x1=_LEFT, x2=_RIGHT, y1=y(level.value), y2=y(level.value),
        class_=f'level {level.style}',
      )
      for level in chart.levels
    ),
    *(_curve(curve, x, y) for curve in curves),
  ]  # fmt: skip
  readings = {
    'percent': chart.percent,
    'series': [
      {
        'label': curve.label,
        'style': curve.style,
        'points': [
          [step, value, x(step), y(value)] for step, value in curve.points
        ],
      }
      for curve in curves
      if 'quiet' not in curve.style
    ],
  }
  last = ', '.join(
    f'{curve.label} {show(curve.points[-1][1], chart.percent)}'
    for curve in curves
    if 'quiet' not in curve.style
  )
  svg = tag(
    'svg',
    *drawn,
    viewBox=f'0 0 {_WIDTH} {_HEIGHT}',
    tabindex=0,
    role='img',
    aria_label=(
      f'{chart.title} over steps; at the end: {last}. Arrow keys read values.'
    ),
    data_chart=json.dumps(readings, separators=(',', ':')),
  )
  reading = tag('output', class_='reading', hidden=True)
  plot = tag('div', svg, reading, class_='plot')
  return tag('figure', heading, plot, _legend(chart, curves), class_='chart')


def thin(points: Points, most: int = _MAX_POINTS) -> Points:
  """Fewer points with the same extremes: of each run of points two stay."""
  if len(points) <= most:
    return points
  size = math.ceil(len(points) / (most // 2 - 1))
  kept = [points[0]]
  for start in range(0, len(points), size):
    part = points[start : start + size]
    ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
    kept += sorted(ends)
  return list(dict.fromkeys([*kept, points[-1]]))


def show(value: float, percent: bool = False, digits: int = 4) -> str:
  """A value as text that does not break: '42.1 %', '0.00025', '1,200'."""
  if percent:
    return f'{100 * value:.1f}\N{NO-BREAK SPACE}%'
  if abs(value) >= 1000:
    return f'{value:,.0f}'
  text = f'{value:.{digits}g}'
  return f'{value:.2e}' if 'e' in text else text


Scale = Callable[[float], float]


def _scales(
  chart: Chart, curves: Sequence[Series]
) -> tuple[Scale, Scale, list[float]]:
  """Steps to x, values to y, and the values of the ticks."""
  steps = [step for curve in curves for step, _ in curve.points]
  first, last = min(steps), max(steps)
  values = [value for curve in curves for _, value in curve.points]
  values += [level.value for level in chart.levels]
  values += [limit for band in chart.bands for _, limit in band.limits]
  log = chart.log and min(values) > 0

  def warp(value: float) -> float:
    return math.log(value) if log else value

  low, high = min(values), max(values)
  if any(band.side == 'below' for band in chart.bands) and low > 0:
    low = 0.0
  if low == high:
    low, high = low - abs(low) / 10 - 1e-6, high + abs(high) / 10 + 1e-6
  ticks = _log_ticks(low, high) if log else _ticks(low, high)
  bottom, top = min(warp(low), *map(warp, ticks)), warp(high)
  top += (top - bottom) * (
    0.12 if any(band.side == 'above' for band in chart.bands) else 0.04
  )

  def x(step: float) -> float:
    share = (step - first) / (last - first) if last > first else 0.5
    return round(_LEFT + share * (_RIGHT - _LEFT), 1)

  def y(value: float) -> float:
    share = (warp(value) - bottom) / (top - bottom)
    return round(_BOTTOM - min(max(share, 0.0), 1.0) * (_BOTTOM - _TOP), 1)

  return x, y, [tick for tick in ticks if warp(tick) <= top]


def _ticks(low: float, high: float) -> list[float]:
  """Four to seven round values, the first at or below `low`."""
  rough = (high - low) / 4
  power = 10.0 ** math.floor(math.log10(rough))
  size = next(
    step * power for step in (1, 2, 2.5, 5, 10) if step * power >= 0.99 * rough
  )
  first = math.floor(low / size + 1e-9)
  return [i * size for i in range(first, math.floor(high / size + 0.05) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
  """Round values, about as far from each other in ratio."""
  decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  for steps in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1,)):
    every = [step * 10.0**decade for decade in decades for step in steps]
    inside = [tick for tick in every if low <= tick <= high]
    if len(inside) <= 7:
      break
  return inside or [low, high]


def _grid(
  x: Scale, y: Scale, ticks: Sequence[float], chart: Chart
) -> list[Html]:
  drawn = []
  for tick, text in zip(ticks, _texts(ticks, chart.percent), strict=True):
    drawn += [
      tag('line', x1=_LEFT, x2=_RIGHT, y1=y(tick), y2=y(tick), class_='grid'),
      tag('text', text, x=_LEFT - 6, y=y(tick) + 4, text_anchor='end'),
    ]
  steps = [step for curve in chart.series for step, _ in curve.points]
  first, last = min(steps), max(steps)
  shown = _ticks(first, last) if last > first else [first]
  for step in shown:
    if first <= step <= last and step == round(step):
      drawn.append(
        tag(
          'text', f'{step:,.0f}', x=x(step), y=_BOTTOM + 18,
          text_anchor='end' if x(step) > _RIGHT - 12 else 'middle',
        )
      )  # fmt: skip
  return drawn


def _texts(ticks: Sequence[float], percent: bool) -> list[str]:
  """What stands beside ticks: as many digits as tell them apart."""
  texts: list[str] = []
  for digits in range(4, 12):
    texts = [
      f'{100 * tick:.{digits}g} %' if percent else show(tick, digits=digits)
      for tick in ticks
    ]
    if len(set(texts)) == len(texts):
      break
  return texts


def _area(band: Band, x: Scale, y: Scale) -> Html:
  """The part of the plot on the bad side of the limits."""
  edge = _TOP if band.side == 'above' else _BOTTOM
  limits = thin(band.limits)
  corners = [f'{x(step)},{y(limit)}' for step, limit in limits]
  start, end = x(limits[0][0]), x(limits[-1][0])
  path = f'M{start},{edge} L{" L".join(corners)} L{end},{edge} Z'
  return tag('path', d=path, class_='band')


def _curve(curve: Series, x: Scale, y: Scale) -> list[Html]:
  corners = [f'{x(step)},{y(value)}' for step, value in curve.points]
  line = tag('path', d=f'M{" L".join(corners)}', class_=f'curve {curve.style}')
  if len(corners) > 40 or 'quiet' in curve.style:
    return [line]
  dots = [
    tag('circle', cx=x(step), cy=y(value), r=2.4, class_=f'dot {curve.style}')
    for step, value in curve.points
  ]
  return [line, *dots]


def _legend(chart: Chart, curves: Sequence[Series]) -> Html:
  """What the lines are, with their last values."""
  entries = [
    (f'key {curve.style}', curve.label, curve.points[-1][1])
    for curve in curves
    if 'quiet' not in curve.style
  ]
  entries += [
    (f'key level {level.style}', level.label, level.value)
    for level in chart.levels
  ]
  items = [
    tag(
      'li',
      tag('span', class_=style),
      f'{label} ',
      tag('b', show(value, chart.percent)),
    )
    for style, label, value in entries
  ]
  if any(band.limits for band in chart.bands):
    items.append(tag('li', tag('span', class_='key band'), 'warned about'))
  return tag('ul', *items, class_='legend')
