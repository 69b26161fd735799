"""The report as one HTML file that needs nothing else, and no network."""

import base64
import hashlib
import pathlib
import string
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from ijepa_jax import run_files
from ijepa_jax.report import charts, panels, tables
from ijepa_jax.report.markup import Html, join, tag

_ASSETS = resources.files('ijepa_jax.report') / 'assets'

_STATES = {
  'running': 'training',
  'silent': 'gone: no sign of life',
  'finished': 'finished',
  'stopped': 'stopped',
}


def render(runs: Sequence[run_files.Run]) -> str:
  """The whole page.

  Args:
    runs: one, or several to compare.
  """
  sections = [
    ('summary', 'Summary', _summary(runs)),
    *(
      (f'curves-{title.lower()}', title, _charts(drawn))
      for title, drawn in panels.groups(runs)
    ),
    ('tables', 'Probe accuracy', tables.probes(runs)),
    ('evaluation', 'Evaluation', _evaluation(runs)),
    ('pictures', 'Pictures', _pictures(runs)),
    ('config', 'Configuration', tables.config(runs)),
    ('starts', 'How it was run', _starts(runs)),
  ]
  names = ' / '.join(run.name for run in runs)
  style, script = (
    (_ASSETS / name).read_text(encoding='utf-8')
    for name in ('report.css', 'report.js')
  )
  page = (_ASSETS / 'page.html').read_text(encoding='utf-8')
  links = [
    tag('li', tag('a', title, href=f'#{anchor}'))
    for anchor, title, _ in sections
  ]
  body = [
    tag('section', tag('h2', title), content, id=anchor)
    for anchor, title, content in sections
  ]
  return string.Template(page).substitute(
    title=join([f'{names} – I-JEPA']),
    heading=join([names]),
    states=join([_state(run, len(runs) > 1) for run in runs]),
    made=time.strftime('%Y-%m-%d %H:%M'),
    links=join(links),
    sections=join(body),
    style=style,
    script=script,
    # What is not of ours does not run, wherever it may have slipped in.
    style_hash=_hash(style),
    script_hash=_hash(script),
  )


def _hash(content: str) -> str:
  digest = hashlib.sha256(content.encode()).digest()
  return base64.b64encode(digest).decode()


def _state(run: run_files.Run, named: bool) -> Html:
  state = run_files.Pulse(run.path).look(run)
  text = f'{run.name}: {_STATES[state]}' if named else _STATES[state]
  return tag('span', text, class_=f'state {state}')


def _summary(runs: Sequence[run_files.Run]) -> Html:
  found = []
  for run in runs:
    for step, text in run.health[0]:
      of = f'{run.name}, ' if len(runs) > 1 else ''
      found.append(tag('li', tag('b', f'{of}step {step:,}: '), text))
  rows = sum(len(run.rows) for run in runs)
  warnings = (
    tag('ul', *found, class_='warnings')
    if found
    else tag('p', f'No health warning in {rows:,} rows.', class_='healthy')
  )
  return join([warnings, tables.summary(runs)])


def _charts(drawn: Sequence[charts.Chart]) -> Html:
  return tag('div', [charts.draw(chart) for chart in drawn], class_='charts')


def _evaluation(runs: Sequence[run_files.Run]) -> Html:
  side_by_side = tables.compared(runs) if len(runs) > 1 else None
  return join([side_by_side, tables.evaluation(runs)])


def _starts(runs: Sequence[run_files.Run]) -> Html:
  return join(
    [
      part
      for run in runs
      for part in (
        tag('h3', run.name) if len(runs) > 1 else None,
        tables.starts(run),
      )
    ]
  )


def _pictures(runs: Sequence[run_files.Run]) -> Html:
  drawn: list[Any] = []
  for run in runs:
    if len(runs) > 1:
      drawn.append(tag('h3', run.name))
    masks = run.path / 'masks.png'
    if masks.is_file():
      drawn.append(
        _picture(
          masks,
          'Masks of the first batch',
          'What the context encoder sees, and the blocks that are predicted.',
        )
      )
    folder = (run.path / run_files.PICTURES).parent
    for entry in run.pictures:
      drawn.append(
        _picture(
          folder / str(entry['file']),
          str(entry['title']),
          str(entry.get('explanation', '')),
          entry.get('figures'),
          entry.get('command'),
        )
      )
    if not run.pictures:
      drawn.append(
        tag(
          'p',
          'PCA of features, attention and what the predictor imagines: ',
          tag(
            'code',
            tables.command_line(
              [
                'python',
                '-m',
                'ijepa_jax.visualize',
                f'--checkpoint={run.path}',
                '--images=DIR',
              ]
            ),
          ),
          class_='missing',
        )
      )
  return join(drawn)


def _picture(
  file: pathlib.Path,
  title: str,
  explanation: str,
  figures: Mapping[str, float] | None = None,
  command: Sequence[str] | str | None = None,
) -> Html:
  """A PNG inside of the page."""
  try:
    content = file.read_bytes()
  except FileNotFoundError:
    return tag('p', f'{title}: {file} is not there.', class_='missing')
  data = base64.b64encode(content).decode()
  image = tag('img', src=f'data:image/png;base64,{data}', alt=title)
  measured = how = None
  if figures:
    shown = [f'{name} {charts.show(x)}' for name, x in figures.items()]
    measured = tag('p', ', '.join(shown))
  if command:
    line = tag('pre', tag('code', tables.command_line(command)), tabindex=0)
    how = tag('details', tag('summary', 'Command'), line)
  return tag(
    'figure',
    tag('figcaption', tag('h3', title), tag('p', explanation), measured),
    tag(
      'div', image, class_='scroll', tabindex=0, role='region',
      aria_label=title,
    ),
    how,
    class_='picture',
  )  # fmt: skip
