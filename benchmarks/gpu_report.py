"""The tables that `gpu_check.py` prints, and what of the targets is met."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gpu_tasks
from gpu_tasks import Row

from ijepa_jax.benchmark import report

Rows = Mapping[str, Row]


def targets(rows: Rows) -> list[dict[str, Any]]:
  """What an H200 shall reach, what was measured, and whether that is met.

  Returns:
    One dict per target: `target`, `measured` (None where it is not known),
    `at_least` or `at_most`, `met`.
  """
  huge, large, base = (
    _fastest(rows, name) for name in ('vith14', 'vitl16', 'vitb16')
  )
  rate = _median(huge)
  state = huge.get('state', {})

  def over(name: str) -> float | None:
    other = rows[name].values.get('images_per_second') if name in rows else None
    return rate / other if rate and other else None

  def per(what: str) -> float | None:
    if not state:
      return None
    return state[f'{what}_bytes'] / state[f'{what}_parameters']

  starts = [
    row.values.get('to_first_step_seconds') if row else None
    for row in (
      rows.get('step vith14 batch 128 xla none'),
      rows.get('start of vith14 with the cache'),
    )
  ]
  memory = huge.get('peak_memory_bytes')
  share = huge.get('share_of_matrix_rate')
  return [
    _target('ViT-H/14, images/s', rate, at_least=700),
    _target('ViT-H/14, share of the matrix rate', share, at_least=0.58),
    _target(
      'ViT-H/14 over the reference, eager',
      over('reference, eager'),
      at_least=2.5,
    ),
    _target(
      'ViT-H/14 over the reference, SDPA and torch.compile',
      over('reference, SDPA and torch.compile'),
      at_least=1.4,
    ),
    _target('ViT-H/14, peak GB', memory and memory / 1e9, at_most=80),
    _target('ViT-L/16, images/s', _median(large), at_least=1700),
    _target('ViT-B/16, images/s', _median(base), at_least=4500),
    _target('ViT-H/14, host ms per step', huge.get('host_ms'), at_most=5),
    _target('ViT-H/14, first step after s', starts[0], at_most=60),
    _target('the same with the cache', starts[1], at_most=20),
    _target('bytes per trained parameter', per('trained'), at_most=12),
    _target('bytes per target parameter', per('target'), at_most=4),
  ]


def _target(
  name: str,
  measured: float | None,
  *,
  at_least: float | None = None,
  at_most: float | None = None,
) -> dict[str, Any]:
  if measured is None:
    met = None
  elif at_least is not None:
    met = measured >= at_least
  else:
    met = measured <= (at_most or 0)
  limit = {'at_least': at_least} if at_least else {'at_most': at_most}
  return {'target': name, **limit, 'measured': measured, 'met': met}


def _fastest(rows: Rows, name: str) -> Mapping[str, Any]:
  """Values of a model's fastest step at batch 128, empty where none ran."""
  found = [
    row.values
    for row in rows.values()
    if row.name.startswith(f'step {name} batch 128 ') and row.values
  ]
  return max(found, key=lambda x: _median(x) or 0, default={})


def _median(values: Mapping[str, Any]) -> float | None:
  return values['images_per_second']['median'] if values else None


# --- Tables ----------------------------------------------------------------


def tables(rows: Rows, names: Iterable[str]) -> str:
  """All of it as text, the targets last.

  Args:
    rows: what came out, by name.
    names: of all tasks, in the plan's order.
  """
  named = [rows[name] for name in names]
  ran = [row for row in named if row.status != gpu_tasks.SKIPPED]
  steps = [row for row in ran if row.name.startswith('step ')]
  memory = [row for row in ran if row.name.startswith('memory ')]
  others = [row for row in ran if row not in steps and row not in memory]
  skipped = [row for row in named if row.status == gpu_tasks.SKIPPED]
  parts: list[tuple[str, Sequence[Sequence[str]]]] = [
    ('checks and rates', [_line(row) for row in others]),
    ('training step', _steps(steps)),
    ("memory, XLA's plan", _memory(memory)),
    ('skipped', [(row.name, row.note) for row in skipped]),
    ('targets, for one H200', _targets(rows)),
  ]
  return '\n\n'.join(
    f'{title}\n{report.columns(lines)}' for title, lines in parts if lines
  )


def _line(row: Row) -> tuple[str, ...]:
  return row.name, row.status, row.note


def _steps(rows: list[Row]) -> list[tuple[str, ...]]:
  if not rows:
    return []
  head = (
    ('', 'images/s', 'TFLOP/s', 'of data sheet', 'of matrix rate')
    + ('peak GB', 'compile s', 'first step after s', 'host ms')
  )  # fmt: skip
  return [head, *(_step(row) for row in rows)]


def _step(row: Row) -> tuple[str, ...]:
  name = row.name.removeprefix('step ')
  values = row.values
  if not values:
    return name, row.status, row.note
  rate = values['images_per_second']['median']
  return (
    name,
    f'{rate:,.1f}',
    f'{values["model_tflops_per_second"]:.4g}',
    _share(values.get('utilisation')),
    _share(values.get('share_of_matrix_rate')),
    f'{values["peak_memory_bytes"] / 1e9:.3g}',
    f'{values["compile_seconds"]:.1f}',
    _or_dash(values.get('to_first_step_seconds')),
    f'{values["host_ms"]:.2f}',
  )


def _memory(rows: list[Row]) -> list[tuple[str, ...]]:
  """A line per batch size and attention, a column per policy."""
  policies = ('none', 'dots', 'full')
  cells: dict[tuple[str, str], dict[str, str]] = {}
  for row in rows:
    _, model, _, batch, attention, policy = row.name.split()
    size = row.values.get('bytes')
    text = f'{size / 1e9:.3g} GB' if size is not None else row.status
    line = cells.setdefault((f'{model} batch {batch}', attention), {})
    line[policy] = text
  lines = [
    (*key, *(found.get(policy, '-') for policy in policies))
    for key, found in cells.items()
  ]
  return [('', 'attention', *policies), *lines] if lines else []


def _targets(rows: Rows) -> Sequence[Sequence[str]]:
  words = {True: 'met', False: 'NOT MET', None: 'not measured'}
  lines = [('', 'target', 'measured', '')]
  for target in targets(rows):
    least, most = target.get('at_least'), target.get('at_most')
    limit = f'at least {least:,g}' if least else f'at most {most:,g}'
    measured = target['measured']
    text = '-' if measured is None else f'{measured:,.4g}'
    lines.append((target['target'], limit, text, words[target['met']]))
  return lines


def _share(value: float | None) -> str:
  return '-' if value is None else f'{value:.1%}'


def _or_dash(value: float | None) -> str:
  return '-' if value is None else f'{value:.1f}'
