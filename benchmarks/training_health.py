"""Provokes what docs/training-health.md shows: runs that go wrong.

  python benchmarks/training_health.py RUNS         # trains, for minutes each
  python benchmarks/training_health.py --draw=docs  # what was recorded

The rows of the runs that the document shows are recorded in
benchmarks/results/training_health; copies of RUNS/NAME/metrics.jsonl.
"""

import argparse
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ijepa_jax.data import scenes
from ijepa_jax.metrics import health, series, writers
from ijepa_jax.visualize import figure as fig

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / 'benchmarks' / 'results' / 'training_health'

# The quickstart in a third of the time: half the images per step, fewer steps.
COMMON = (
  '--config=configs/quickstart.py --config.batch_size=32 '
  '--config.total_steps=600 --config.data.workers=0 --config.log.every=10 '
  '--config.log.tensorboard=False --config.checkpoint.every=600 '
  '--config.eval.every=60 --config.eval.train_examples=1000 '
  '--config.eval.test_examples=500'
)
_FOLDER = (
  '--config.data.source=folder --config.data.path={folder} '
  '--config.eval.split=test'
)
RUNS = {
  'healthy': '',
  'collapse': '--config.model.init_std=0.02',
  'high_lr': '--config.optim.lr=0.04',
  'black_images': _FOLDER,
}

IMAGES = {'train': 4000, 'test': 1000}
BLACK = 0.95


def make_folder(folder: pathlib.Path) -> None:
  """Writes scenes as PNG files by colour, of which 95 % are black."""
  rng = np.random.default_rng(0)
  for split, count in IMAGES.items():
    source = scenes.ScenesSource(split, 32)
    for number in range(count):
      scene = source[number]
      color = scenes.CLASS_NAMES['color'][scene['labels']['color']]
      pixels = scene['image'] * np.uint8(rng.random() >= BLACK)
      file = folder / split / color / f'{number:04}.png'
      file.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(pixels).save(file)


def command(name: str, runs: pathlib.Path) -> list[str]:
  """The command line of a run, from the repository's root."""
  more = RUNS[name].format(folder=runs / 'images')
  return [
    *('python', '-m', 'ijepa_jax.main'),
    *COMMON.split(),
    *more.split(),
    f'--workdir={runs / name}',
  ]


def train(names: Sequence[str], runs: pathlib.Path) -> None:
  """Trains one run after the other; those that are finished print a table."""
  if 'black_images' in names and not (runs / 'images').exists():
    make_folder(runs / 'images')
  for name in names:
    words = command(name, runs)
    print('\n$', shlex.join(words), flush=True)
    result = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, check=False)
    if result.returncode:  # a run that diverges has rows to show as well
      print(f'{name}: exit code {result.returncode}', flush=True)


TITLES = {
  'healthy': 'All is well',
  'collapse': 'Collapse: init_std 0.02 at a width of 96',
  'high_lr': 'Learning rate 20 times too high',
  'black_images': '95 % of the images are black',
}
PANELS = (
  ('train/loss', 'Loss'),
  ('health/rankme', 'RankMe'),
  ('health/lidar', 'LiDAR'),
  ('health/feature_std', 'Feature deviation'),
  ('health/image_cosine', 'Image cosine'),
  ('health/target_variance', 'Target variance'),
  ('attention_entropy/00', 'Attention entropy, block 0'),
  ('probe/{label}/linear', 'Linear probe of colour'),
)
_COLOR, _BAD = '#0072B2', '#D55E00'


def draw(folder: pathlib.Path) -> None:
  """Draws each recorded run, with the healthy one in grey behind it."""
  rows = {
    name: writers.read_metrics(RESULTS / f'{name}.jsonl') for name in RUNS
  }
  folder.mkdir(parents=True, exist_ok=True)
  for name in RUNS:
    figure = Figure(figsize=(12, 5), layout='constrained')
    figure.suptitle(TITLES[name], x=0.01, ha='left', fontsize=13, color=fig.INK)
    axes = figure.subplots(2, 4).flat
    for axis, (metric, title) in zip(axes, PANELS, strict=True):
      _panel(axis, name, rows, metric, title)
    fig.save(figure, folder / f'training_health_{name}.png', dpi=90)


def _panel(
  axis: Axes,
  name: str,
  rows: dict[str, list[writers.Row]],
  metric: str,
  title: str,
) -> None:
  axis.set_title(title, loc='left', fontsize=10, color=fig.INK)
  axis.spines[['top', 'right']].set_visible(False)
  axis.tick_params(colors=fig.MUTED, labelsize=8)
  axis.grid(color=fig.FAINT, linewidth=0.5)
  for run, color in ({'healthy': fig.MUTED} | {name: _COLOR}).items():
    label = 'label' if run == 'black_images' else 'color'  # a folder's classes
    steps, values = series.of(rows[run], metric.format(label=label))
    axis.plot(steps, values, color=color, linewidth=2 if run == name else 1)
  low, high = axis.get_ylim()
  _limits(axis, rows[name], metric.removeprefix('health/'))
  whole = metric.startswith(('health/', 'train/'))
  axis.set_ylim(0.0 if whole else low, high)


def _limits(axis: Axes, rows: list[writers.Row], figure: str) -> None:
  """Shades what a run is warned about, and marks the first warning."""
  watch = health.HealthWatch(feature_width=96, warmup_steps=156)
  steps, limits, bad, side = [], [], [], 'below'
  for row in rows:
    watch.check(int(row['step']), row)
    if f'health/{figure}' in row and figure in watch.judged:
      judged = watch.judged[figure]
      side = judged.side
      steps.append(row['step'])
      limits.append(judged.limit)
      bad += [row['step']] if judged.bad else []
  if steps:
    edge = -1.0 if side == 'below' else 2.0  # outside of what is drawn
    axis.fill_between(steps, limits, edge, color=_BAD, alpha=0.15, linewidth=0)
  if bad:
    axis.axvline(bad[0], color=_BAD, linewidth=1.2, linestyle='--')


def main() -> None:
  """Parses the command line; trains or draws."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument('runs', nargs='?', type=pathlib.Path, help='workdirs')
  what.add_argument('--draw', type=pathlib.Path, help='folder of the pictures')
  parser.add_argument('--only', choices=RUNS, help='train one run')
  args = parser.parse_args()
  if args.draw:
    draw(args.draw)
  else:
    train([args.only] if args.only else list(RUNS), args.runs.resolve())


if __name__ == '__main__':
  main()
