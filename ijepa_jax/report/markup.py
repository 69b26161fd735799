"""HTML from Python: text is escaped unless it is known to be markup."""

import html
from collections.abc import Iterable
from typing import Any


class Html(str):
  """Text that is markup already."""


# Elements without content and end.
_VOID = {'img', 'meta', 'line', 'path', 'rect', 'circle'}


def tag(name: str, *children: Any, **attributes: Any) -> Html:
  """An element.

  Args:
    name: of the element.
    *children: markup as `Html`; anything else becomes escaped text. None is
      left out, and a list or tuple stands for its items.
    **attributes: `class_` is class, `data_x` is data-x; None and False are left
      out, True is an attribute without a value.
  """
  parts = []
  for key, value in attributes.items():
    key = key.rstrip('_').replace('_', '-')
    if value is True:
      parts.append(f' {key}')
    elif value is not None and value is not False:
      parts.append(f' {key}="{html.escape(str(value))}"')
  opening = f'<{name}{"".join(parts)}>'
  if name in _VOID:
    return Html(opening if name in ('img', 'meta') else f'{opening[:-1]}/>')
  return Html(f'{opening}{join(children)}</{name}>')


def join(children: Iterable[Any]) -> Html:
  """The children of an element, one after the other."""
  parts: list[Html] = []
  for child in children:
    if child is None:
      continue
    if isinstance(child, Html):
      parts.append(child)
    elif isinstance(child, list | tuple):
      parts.append(join(child))
    else:
      parts.append(Html(html.escape(str(child))))
  return Html(''.join(parts))


def table(
  head: Iterable[Any],
  rows: Iterable[Iterable[Any]],
  caption: str | None = None,
) -> Html:
  """A table that scrolls sideways by itself where the page is narrow.

  Args:
    head: of the columns.
    rows: cells; the first one of a row names it.
    caption: above the table.
  """
  body = [
    tag(
      'tr',
      [
        tag('td', cell) if number else tag('th', cell, scope='row')
        for number, cell in enumerate(row)
      ],
    )
    for row in rows
  ]
  return tag(
    'div',
    tag(
      'table',
      tag('caption', caption) if caption else None,
      tag('thead', tag('tr', [tag('th', name, scope='col') for name in head])),
      tag('tbody', body),
    ),
    class_='scroll',
    tabindex=0,
    role='region',
    aria_label=caption or 'table',
  )
