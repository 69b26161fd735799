"""The table on the console when a run ends."""

from collections.abc import Mapping, Sequence

Figures = Mapping[str, float]


def final_table(
  *,
  steps: int,
  loss: float,
  images_per_second: float,
  chance: Figures,
  pixels: Figures,
  init: Figures,
  trained: Figures,
  checkpoint: str,
  pictures: str,
  commands: Sequence[tuple[str, str]],
) -> str:
  """What came of a run, as plain text at most 80 columns wide.

  Paths and commands that are longer stay whole, so that they can be copied.

  Args:
    steps: updates done.
    loss: of the last log interval.
    images_per_second: of training.
    chance: label -> share of the commonest class, 0..1.
    pixels: probe/LABEL/{knn,linear} of raw pixels, 0..1.
    init: the same and health/rankme of the encoder before training.
    trained: the same and health/rankme now.
    checkpoint: path of the last one.
    pictures: where they are.
    commands: (what it does, command), what to do next.
  """
  lines = [
    f'Trained {steps:,} steps at {images_per_second:,.0f} images/s.  '
    f'Loss {loss:.4f}.'
  ]
  if 'health/rankme' in init and 'health/rankme' in trained:
    lines.append(
      f'RankMe (directions the features use): {init["health/rankme"]:.1f} '
      f'before training, {trained["health/rankme"]:.1f} now.'
    )
  labels = [name for name in chance if f'probe/{name}/knn' in trained]
  if labels:
    lines += ['', *_probe_table(labels, chance, pixels, init, trained)]
  lines += ['', f'Checkpoint: {checkpoint}', f'Pictures: {pictures}']
  if commands:
    lines += ['', 'Next:']
    for purpose, command in commands:
      lines += [f'  # {purpose}', f'  {command}']
  return '\n'.join(lines)


def _probe_table(
  labels: Sequence[str],
  chance: Figures,
  pixels: Figures,
  init: Figures,
  trained: Figures,
) -> list[str]:
  width = max(len('label'), *(len(name) for name in labels))
  group = ''.join(f'{name:>9}' for name in ('pixels', 'init', 'trained'))
  lines = [
    'Accuracy of probes on frozen features, in %',
    f'{"":{width}}{"":>9}  {"k-NN":-^27}  {"linear":-^27}',
    f'{"label":{width}}{"chance":>9}  {group}  {group}',
  ]
  for name in labels:
    line = f'{name:{width}}{100 * chance[name]:9.1f}'
    for probe in ('knn', 'linear'):
      key = f'probe/{name}/{probe}'
      line += '  ' + ''.join(
        f'{100 * row[key]:9.1f}' if key in row else f'{"-":>9}'
        for row in (pixels, init, trained)
      )
    lines.append(line)
  return lines
