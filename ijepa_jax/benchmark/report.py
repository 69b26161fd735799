"""How measurements are told to people: progress, aligned columns, units."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any


def say(message: str) -> None:
  """Progress, which is no result: a line on stderr."""
  print(message, file=sys.stderr, flush=True)


def columns(rows: Sequence[Sequence[str]]) -> str:
  """Rows of cells, aligned: numbers to the right, words to the left."""
  widths: dict[int, int] = {}
  for row in rows:
    for i, cell in enumerate(row):
      widths[i] = max(widths.get(i, 0), len(cell))

  def aligned(i: int, cell: str) -> str:
    return (
      cell.rjust(widths[i]) if cell[:1].isdigit() else cell.ljust(widths[i])
    )

  lines = ('  '.join(aligned(*cell) for cell in enumerate(row)) for row in rows)
  return '\n'.join(f'  {line}'.rstrip() for line in lines)


def number(value: float) -> str:
  """Three digits at least, thousands with a comma."""
  return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'


def seconds(value: float) -> str:
  """In the unit that fits: '2.31 s', '14.2 ms', '87 us'."""
  for size, unit in ((1.0, 's'), (1e-3, 'ms')):
    if value >= size:
      return f'{number(value / size)} {unit}'
  return f'{value * 1e6:.0f} us'


def size(count: float) -> str:
  """Bytes in GB or MB, powers of ten."""
  for unit, name in ((1e9, 'GB'), (1e6, 'MB')):
    if count >= unit:
      return f'{number(count / unit)} {name}'
  return f'{count:,.0f} bytes'


def quartiles(values: Mapping[str, Any], unit: float = 1.0) -> str:
  """The quartiles of `record.spread`, in brackets."""
  low, high = (number(value / unit) for value in values['quartiles'])
  return f'({low} - {high})'
