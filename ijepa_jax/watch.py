"""Follows a run in the terminal: progress, health, probes, is it alive?

  python -m ijepa_jax.watch RUN

Reads the run's files and writes nothing, so RUN may be on a file system that
another machine trains on. Ctrl-C ends. `--once` prints one frame, and so does
output that is no terminal.
"""

import argparse
import contextlib
import itertools
import math
import statistics
import sys
import time
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ijepa_jax import errors, run_files
from ijepa_jax.config import arguments
from ijepa_jax.metrics import series
from ijepa_jax.metrics.progress import duration

_BARS = '▁▂▃▄▅▆▇█'

# Rows of loss whose rate is the present one.
_RECENT = 5

_WARNINGS = 4  # the newest
_GAP = 4  # characters between tables

_STATES: dict[run_files.State, tuple[str, str]] = {
  'running': ('running', 'green'),
  'silent': ('no sign of life', 'red'),
  'finished': ('finished', 'green'),
  'stopped': ('stopped', 'yellow'),
}


def main(argv: Sequence[str] | None = None) -> None:
  """Shows frames until Ctrl-C, or one of them."""
  with errors.exit_cleanly():
    args = _parser().parse_args(argv)
    run = run_files.read(args.run)
    pulse = run_files.Pulse(run.path)
    console = Console()
    if console.is_terminal and not args.once:
      with contextlib.suppress(KeyboardInterrupt):  # how one leaves
        _follow(run, pulse, console, args.seconds)
      run = run_files.read(args.run)
    console.print(frame(run, pulse, console.width))


def _parser() -> argparse.ArgumentParser:
  parser = arguments.Parser(
    prog='python -m ijepa_jax.watch',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('run', metavar='RUN', help='workdir of a run')
  parser.add_argument('--once', action='store_true', help='print one frame')
  parser.add_argument(
    '--seconds', type=_seconds, default=2.0, help='between frames, default 2'
  )
  return parser


def _seconds(text: str) -> float:
  seconds = float(text)
  if not 0.1 <= seconds <= 3600:
    raise argparse.ArgumentTypeError(f'{text}: expected 0.1 to 3600')
  return seconds


def _follow(
  run: run_files.Run,
  pulse: run_files.Pulse,
  console: Console,
  seconds: float,
) -> None:
  with Live(
    frame(run, pulse, console.width),
    console=console,
    screen=console.is_terminal,
    auto_refresh=False,
  ) as live:
    while True:
      time.sleep(seconds)
      run = run_files.read(run.path)
      live.update(frame(run, pulse, console.width), refresh=True)


def frame(
  run: run_files.Run, pulse: run_files.Pulse, width: int
) -> RenderableType:
  """All that is known of a run now.

  Args:
    run: just read.
    pulse: of the same run.
    width: of the terminal, in characters.
  """
  # What matters comes first: a low terminal shows the upper part.
  parts = [_progress(run, pulse), _loss(run, width - 4), _warnings(run)]
  tables = [part for part in (_health(run), _probes(run)) if part is not None]
  wide = Console(width=1000)
  needed = sum(wide.measure(part).maximum + _GAP for part in tables)
  if len(tables) == 2 and needed <= width:
    side_by_side = Table.grid(padding=(0, _GAP, 0, 0))
    side_by_side.add_row(*tables)
    parts.append(side_by_side)
  else:
    parts += tables
  return Panel(Group(*parts), title=Text(str(run.path), 'bold'))


def _progress(run: run_files.Run, pulse: run_files.Pulse) -> RenderableType:
  state = pulse.look(run)
  text, color = _STATES[state]
  line = Text.assemble((text, f'bold {color}'))
  if state in ('running', 'silent'):
    line.append(f', lock counted {duration(pulse.seconds)} ago')
  if run.rows:
    age = time.time() - run.rows[-1]['time']
    line.append(f', last row {duration(age)} ago')
  step, total = run.step, run.total_steps
  facts = [f'step {step:,}' + (f' of {total:,}' if total else '')]
  rate = _rate(run)
  if rate is not None:
    facts.append(f'{_images_per_second(run):,.0f} images/s')
    if state == 'running' and total:
      facts.append(f'{duration((total - step) / rate)} left')
  if run.checkpoints:
    facts.append(f'last checkpoint {run.checkpoints[-1]:,}')
  bar = ProgressBar(total=total or 1, completed=step, complete_style='cyan')
  lines = Table.grid(expand=True)
  for part in (line, bar, Text('  '.join(facts))):
    lines.add_row(part)
  return lines


def _rate(run: run_files.Run) -> float | None:
  """Steps per second of the last rows of one start, pauses included."""
  rows = [row for row in run.rows if 'train/loss' in row][-_RECENT:]
  if run.starts:
    rows = [row for row in rows if row['time'] >= run.starts[-1]['time']]
  if len(rows) < 2 or rows[-1]['time'] <= rows[0]['time']:
    return None
  return (rows[-1]['step'] - rows[0]['step']) / (
    rows[-1]['time'] - rows[0]['time']
  )


def _images_per_second(run: run_files.Run) -> float:
  _, rates = series.of(run.rows, 'train/images_per_second')
  return statistics.median(rates[-_RECENT:])


def _loss(run: run_files.Run, width: int) -> RenderableType:
  _, losses = series.of(run.rows, 'train/loss')
  if not len(losses):
    return Text('loss: no row yet', 'dim')
  text = f'loss {losses[-1]:.4f} '
  return Text.assemble(
    text, (sparkline(losses.tolist(), max(8, width - len(text))), 'cyan')
  )


def sparkline(values: Sequence[float], width: int) -> str:
  """A curve in one line: the mean of equal parts, from lowest to highest."""
  count = min(width, len(values))
  edges = [len(values) * i // count for i in range(count + 1)]
  means = [statistics.fmean(values[a:b]) for a, b in itertools.pairwise(edges)]
  low, high = min(means), max(means)
  scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
  return ''.join(_BARS[round((mean - low) * scale)] for mean in means)


def _table(*columns: str) -> Table:
  table = Table(box=None, pad_edge=False, header_style='dim', padding=(0, 2))
  for number, column in enumerate(columns):
    table.add_column(column, justify='right' if number else 'left')
  return table


def _health(run: run_files.Run) -> Table | None:
  """Each figure beside the limit it is warned about."""
  figures = [name for name in run.latest if name.startswith('health/')]
  if not figures:
    return None
  judgements = run.health[1]
  table = _table('health', 'before', 'now', 'warned about')
  for name in sorted(figures):
    figure = name.removeprefix('health/')
    judged = judgements[figure][-1][1] if figure in judgements else None
    limit, style = '', ''
    if judged is not None:
      known = math.isfinite(judged.limit)
      limit = f'{judged.side} {judged.limit:.3g}' if known else 'later'
      style = 'bold red' if judged.bad else 'green' if known else ''
    before = run.first.get(name)
    table.add_row(
      figure.replace('_', ' '),
      '' if before is None else f'{before:.3g}',
      Text(f'{run.latest[name]:.3g}', style),
      limit,
    )
  return table


def _probes(run: run_files.Run) -> Table | None:
  if not run.labels:
    return None
  table = _table('probes, %', 'chance', 'pixels', 'before', 'now')
  for label in run.labels:
    for key, kind in (('knn', 'k-NN'), ('linear', 'linear')):
      name = f'probe/{label}/{key}'
      table.add_row(
        Text(f'{label} {kind}'),
        *(
          '' if value is None else f'{100 * value:.1f}'
          for value in (
            run.first.get(f'chance/{label}'),
            run.first.get(f'pixels/{name}'),
            run.first.get(name),
            run.latest.get(name),
          )
        ),
      )
  return table


def _warnings(run: run_files.Run) -> RenderableType:
  warnings = run.health[0]
  if not warnings:
    return Text('no health warning', 'green')
  return Group(
    *(
      Text(f'step {step:,}: {text}', 'red')
      for step, text in warnings[-_WARNINGS:]
    )
  )


if __name__ == '__main__':
  main(sys.argv[1:])
