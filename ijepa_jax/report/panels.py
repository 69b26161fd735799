"""Which charts a report shows of one run, or of several overlaid."""

import math
from collections.abc import Sequence

from ijepa_jax.metrics import series
from ijepa_jax.report.charts import Band, Chart, Level, Points, Series
from ijepa_jax.run_files import Run

# Colours of the page's style sheet: c0, c1, ...
COLORS = 8

# Of a deep encoder not every block is drawn.
_MAX_BLOCKS = 6

_HEALTH = (
  ('rankme', 'RankMe', 'directions that the features use; 1 is collapse'),
  ('lidar', 'LiDAR', 'directions that tell images apart, whatever the crop'),
  ('feature_std', 'Feature deviation', 'over images; near 0 all look alike'),
  ('image_cosine', 'Image cosine', 'of two images; near 1 all look alike'),
  ('target_variance', 'Target variance', 'over patches, at most 1'),
  ('prediction_variance', 'Prediction variance', 'over patches'),
  (
    'prediction_target_cosine',
    'Prediction and target',
    'their cosine; 1 is a perfect prediction',
  ),
)
_TRAINING = (
  ('train/lr', 'Learning rate', ''),
  ('train/weight_decay', 'Weight decay', ''),
  ('train/momentum', 'EMA momentum', 'of the target encoder'),
  ('train/grad_norm', 'Gradient norm', ''),
  ('train/images_per_second', 'Speed', 'images per second'),
  ('train/data_wait_share', 'Waiting for data', 'share of the time'),
)


def groups(runs: Sequence[Run]) -> list[tuple[str, list[Chart]]]:
  """Headings and their charts, as far as something was measured."""
  health = [_health(runs, *figure) for figure in _HEALTH]
  if len(runs) == 1:
    health += [
      _blocks(runs[0], 'rankme_block', 'RankMe by block', 'after each block'),
      _blocks(
        runs[0],
        'attention_entropy',
        'Attention entropy by block',
        'of its maximum; 1: all patches are looked at alike',
      ),
    ]
  labels = dict.fromkeys(label for run in runs for label in run.labels)
  probes = [chart for label in labels for chart in _probes(runs, label)]
  training = [
    Chart(title, note, _curves(runs, name), percent=name.endswith('share'))
    for name, title, note in _TRAINING
  ]
  found = [
    ('Health', [_loss(runs), *health]),
    ('Probes', probes),
    ('Training', training),
  ]
  measured = [
    (title, [chart for chart in charts if any(s.points for s in chart.series)])
    for title, charts in found
  ]
  return [(title, charts) for title, charts in measured if charts]


def points(run: Run, name: str, smooth: bool = False) -> Points:
  """(step, value) of a figure."""
  steps, values = series.of(run.rows, name)
  if smooth:
    values = series.smooth(values)
  return list(zip(steps.tolist(), values.tolist(), strict=True))


def _curves(
  runs: Sequence[Run], name: str, smooth: bool = False
) -> list[Series]:
  """One curve per run."""
  return [
    Series(
      run.name if len(runs) > 1 else 'now',
      points(run, name, smooth),
      f'c{i % COLORS}',
    )
    for i, run in enumerate(runs)
  ]


def _loss(runs: Sequence[Run]) -> Chart:
  raw = [
    Series(curve.label, curve.points, f'{curve.style} quiet')
    for curve in _curves(runs, 'train/loss')
  ]
  smoothed = _curves(runs, 'train/loss', smooth=True)
  note = 'log scale; a rising loss is often normal'
  return Chart('Loss', note, [*raw, *smoothed], log=True)


def _health(runs: Sequence[Run], figure: str, title: str, note: str) -> Chart:
  bands = []
  # Limits depend on the run: with several of them, bands would overlap.
  if len(runs) == 1:
    judgements = runs[0].health[1].get(figure, [])
    limits = [
      (step, judged.limit)
      for step, judged in judgements
      if math.isfinite(judged.limit)
    ]
    if limits:
      bands.append(Band(judgements[0][1].side, limits))
  return Chart(title, note, _curves(runs, f'health/{figure}'), bands=bands)


def _blocks(run: Run, figure: str, title: str, note: str) -> Chart:
  names = series.blocks(run.rows, figure)
  last = len(names) - 1
  count = min(len(names), _MAX_BLOCKS)
  shown = sorted({round(i * last / max(1, count - 1)) for i in range(count)})
  return Chart(
    title,
    note,
    [
      Series(
        f'block {i}', points(run, names[i]), f'r{round(5 * i / max(1, last))}'
      )
      for i in shown
    ],
  )


def _probes(runs: Sequence[Run], label: str) -> list[Chart]:
  """Both probes of a label: in one chart for one run, else a chart each."""
  kinds = (('knn', 'k-NN'), ('linear', 'linear'))
  title = f'Probes of “{label}”'
  guesses = {
    run.name: run.first[f'chance/{label}']
    for run in runs
    if f'chance/{label}' in run.first
  }
  alike = len(set(guesses.values())) == 1
  chance = [
    Level('chance' if alike else f'chance, {name}', guess)
    for name, guess in list(guesses.items())[: 1 if alike else None]
  ]
  if len(runs) > 1:
    return [
      Chart(
        f'{title}: {kind}',
        'held-out accuracy',
        _curves(runs, f'probe/{label}/{key}'),
        levels=chance,
        percent=True,
      )
      for key, kind in kinds
    ]
  (run,) = runs
  curves, levels = [], []
  for color, (key, kind) in enumerate(kinds):
    name = f'probe/{label}/{key}'
    curves.append(Series(kind, points(run, name), f'c{color}'))
    if f'pixels/{name}' in run.first:
      pixels = run.first[f'pixels/{name}']
      levels.append(Level(f'{kind} of pixels', pixels, f'c{color}'))
  return [
    Chart(
      title, 'held-out accuracy', curves, [*levels, *chance], percent=True
    )
  ]  # fmt: skip
