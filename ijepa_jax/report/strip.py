"""A result between its baselines, as one small line of SVG."""

from collections.abc import Mapping
from typing import Any

from ijepa_jax.report.markup import Html, tag

_WIDTH, _HEIGHT = 200, 20
_MIDDLE = _HEIGHT // 2


def draw(result: Mapping[str, Any]) -> Html:
  """The interval and value of a share, with chance, pixels and init.

  Args:
    result: of results.json; all its values are shares, 0..1.
  """

  def x(share: float) -> float:
    return round(5 + min(max(share, 0.0), 1.0) * (_WIDTH - 10), 1)

  parts = [
    tag('line', x1=x(0), x2=x(1), y1=_MIDDLE, y2=_MIDDLE, class_='grid'),
    tag(
      'line', x1=x(result['low']), x2=x(result['high']), y1=_MIDDLE,
      y2=_MIDDLE, class_='interval',
    ),
  ]  # fmt: skip
  for name in ('chance', 'pixels', 'init'):
    if result.get(name) is not None:
      at = x(result[name])
      parts.append(
        tag('line', x1=at, x2=at, y1=3, y2=_HEIGHT - 3, class_=f'base {name}')
      )
  at = x(result['value'])
  parts.append(tag('circle', cx=at, cy=_MIDDLE, r=3, class_='dot c0'))
  return tag(
    'svg',
    *parts,
    viewBox=f'0 0 {_WIDTH} {_HEIGHT}',
    class_='strip',
    aria_hidden='true',  # the numbers stand beside it
  )


def legend() -> Html:
  """What the marks mean."""
  names = {'chance': 'chance', 'pixels': 'raw pixels', 'init': 'init'}
  return tag(
    'span',
    'From 0 to 100 %: dot and bar are value and interval; ticks are ',
    [
      [tag('span', text, class_=f'base {name}'), end]
      for (name, text), end in zip(
        names.items(), (', ', ', ', '.'), strict=True
      )
    ],
  )
