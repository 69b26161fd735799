"""All that a user sees of a run: lines, files, pictures, the last table."""

import contextlib
import functools
import gc
import pathlib
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

import jax
import ml_collections
import numpy as np
from clu import parameter_overview

from ijepa_jax import atomic, checkpoint, program, starts, train_step
from ijepa_jax.data.sources import Source
from ijepa_jax.evaluation import heldout
from ijepa_jax.evaluation.features import FeatureExtractor
from ijepa_jax.evaluation.online import OnlineEvaluation
from ijepa_jax.metrics import background, health, summary, writers
from ijepa_jax.metrics.progress import Progress
from ijepa_jax.models import sizes
from ijepa_jax.visualize import curves, masks

# Figures of a step that describe health, not training.
_HEALTH = (
  'target_variance',
  'prediction_variance',
  'prediction_target_cosine',
)

_PIXELS, _CHANCE = 'pixels/', 'chance/'
_MAIN = f'{sys.executable} -m ijepa_jax.main'


class Observer:
  """Writes and shows what happens; on other processes than 0 it is silent.

  The features of an evaluation are still computed on every process, because
  encoder and images are spread over all of them.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    *,
    first: int,
    last: int,
    steps_per_epoch: int,
  ):
    """Opens the run's files.

    Args:
      config: the run's config.
      workdir: the run's directory.
      first: updates made in earlier starts of this run.
      last: updates at the end of the run.
      steps_per_epoch: for the epoch shown.
    """
    self._config, self._workdir = config, workdir
    self._first, self._last = first, last
    self._steps_per_epoch = steps_per_epoch
    self._warmup_steps = int(config.optim.warmup_epochs * steps_per_epoch)
    self._main = jax.process_index() == 0
    self._progress = Progress(
      last, first, steps_per_epoch, config.batch_size, enabled=self._main
    )
    self._writer = None
    if self._main:
      self._writer = background.BackgroundWriter(
        writers.MetricWriter(
          workdir,
          tensorboard=config.log.tensorboard,
          wandb=config.log.wandb,
          config=config.to_dict(),
          resume_step=first or None,
        )
      )
    self._watch = health.HealthWatch(
      feature_width=sizes.SIZES[config.model.variant].width,
      warmup_steps=self._warmup_steps,
    )
    for row in self._rows():
      self._watch.check(int(row['step']), row)
    self._evaluation: OnlineEvaluation | None = None
    self._losses: list[float] = []

  def close(self) -> None:
    """Closes the files."""
    self._progress.close()
    if self._writer is not None:
      self._writer.close()

  def flush(self) -> None:
    """Returns when all rows are on disk.

    Before a checkpoint: a continued run does not write earlier rows again.
    """
    if self._writer is not None:
      self._writer.flush()

  def log(self, message: str) -> None:
    """Tells the user something."""
    self._progress.log(message)

  @contextlib.contextmanager
  def timed(self, what: str) -> Iterator[None]:
    """Says what takes a while, and how long it took."""
    begin = time.perf_counter()
    yield
    self.log(f'{what}: {time.perf_counter() - begin:.1f} s')

  def begin(
    self,
    state: train_step.TrainState,
    source: Source,
    learner: train_step.Learner,
    mesh: jax.sharding.Mesh,
  ) -> None:
    """Describes the model and measures it before the first step."""
    if self._main:
      overview = parameter_overview.get_parameter_overview(state.params)
      atomic.write_text(self._workdir / 'parameters.txt', overview + '\n')
      config = self._config.to_json_best_effort(indent=2)
      atomic.write_text(self._workdir / 'config.json', config + '\n')
      starts.record(
        self._workdir,
        {
          'step': self._first,
          'steps': self._last,
          'steps_per_epoch': self._steps_per_epoch,
          'warmup_steps': self._warmup_steps,
          'devices': program.describe(self._config, mesh),
          'processes': jax.process_count(),
          'versions': checkpoint.versions(),
          'data': {'name': source.name, 'epoch_length': source.epoch_length},
        },
      )
    for part, params in state.params.items():
      count = sum(leaf.size for leaf in jax.tree.leaves(params))
      self.log(f'{part}: {count:,} parameters')
    if not self._config.eval.every:
      return
    self._extract = FeatureExtractor(learner, mesh, self._config.batch_size)
    train, test = heldout.load_sets(self._config, source, self._extract.shares)
    self._evaluation = OnlineEvaluation(train, test)
    self.log(
      f'probes: fitted on {train.total:,} images, measured on '
      f'{test.total:,}, every {self._config.eval.every:,} steps'
    )
    if self._first == 0:
      pixels = self._evaluation.features(self._extract.pixels)
      measured = self._measure(state)
      if self._main:
        probed = self._evaluation.probe(*pixels)
        named = {_PIXELS + name: value for name, value in probed.items()}
        chance = self._evaluation.chance
        guessed = {_CHANCE + name: value for name, value in chance.items()}
        self._write(0, {**named, **guessed, **measured})

  def draw_masks(self, batch: Mapping[str, np.ndarray]) -> None:
    """Draws the masks of a batch on its images."""
    if self._main:
      masks.draw_masks(
        self._workdir / 'masks.png',
        batch['image'],
        batch,
        self._config.model.patch_size,
      )

  def step(self, step: int, values: Mapping[str, float]) -> None:
    """Takes note of one step's loss."""
    self._progress.advance(step)
    self._losses.append(values['loss'])

  def report(
    self, step: int, values: Mapping[str, float], rates: Mapping[str, float]
  ) -> None:
    """Writes a row: the mean loss since the last one, the rest as it is now."""
    loss = float(np.mean(self._losses))
    self._losses.clear()
    row = {'train/loss': loss, **rates}
    for name, value in values.items():
      group = 'health' if name in _HEALTH else 'train'
      row.setdefault(f'{group}/{name}', value)
    self._progress.report(step, loss, rates.get('train/images_per_second'))
    self._write(step, row)

  def evaluate(self, step: int, state: train_step.TrainState) -> None:
    """Measures the target encoder, and draws the curves so far."""
    if self._evaluation is None:
      return
    measured = self._measure(state)
    if not self._main:
      return
    self._write(step, measured)
    probes = [
      f'{name.removeprefix("probe/")} {100 * value:.1f} %'
      for name, value in measured.items()
      if name.startswith('probe/')
    ]
    rankme = f'RankMe {measured["health/rankme"]:.1f}'
    self.log('  '.join([f'  at step {step:,}:', rankme, *probes]))
    self._draw_curves()

  def finish(self, path: str) -> None:
    """Draws the curves and prints what came of the run.

    Args:
      path: of the last checkpoint.
    """
    if not self._main:
      return
    self._draw_curves()
    self._progress.close()
    rows = self._rows()
    if not any('train/loss' in row for row in rows):
      self.log(f'finished; checkpoint: {path}')
      return
    latest = {name: value for row in rows for name, value in row.items()}
    rates = [
      row['train/images_per_second']
      for row in rows
      if 'train/images_per_second' in row
    ]
    table = summary.final_table(
      steps=self._last,
      loss=latest['train/loss'],
      images_per_second=statistics.median(rates),
      chance=self._evaluation.chance if self._evaluation else {},
      pixels=_pixels(rows),
      init=rows[0] if rows[0]['step'] == 0 else {},
      trained=latest,
      checkpoint=path,
      pictures=str(self._workdir / '*.png'),
      commands=[
        (
          'train on your own images',
          f'{_MAIN} --config=configs/folder.py --config.data.path=DIR',
        ),
        (
          'make shards of a folder, a zip or a tar, which read faster',
          f'{sys.executable} -m ijepa_jax.prepare SRC DST',
        ),
        ('all options, with their sources', f'{_MAIN} --help'),
      ],
    )
    print(f'\n{table}', flush=True)

  def _rows(self) -> list[writers.Row]:
    if self._writer is None:
      return []
    self._writer.flush()
    return writers.read_metrics(self._workdir / writers.FILE_NAME)

  def _draw_curves(self) -> None:
    if self._main:
      rows = self._rows()
      curves.draw_curves(
        self._workdir / 'curves.png',
        rows,
        chance=self._evaluation.chance if self._evaluation else None,
        pixels=_pixels(rows),
      )
      # A figure is a cycle of objects, 16 MB, that Python would find only
      # after tens of evaluations.
      gc.collect()

  def _measure(self, state: train_step.TrainState) -> dict[str, float]:
    """Figures of the target encoder; none on other processes than 0."""
    if self._evaluation is None:
      return {}
    features = self._evaluation.features(
      functools.partial(self._extract, state.target)
    )
    inside = self._evaluation.inside(
      functools.partial(self._extract.inside, state.target)
    )
    # The others wait in their next step: on a host of eight of them, eight
    # times the same probes would take eight times as long.
    if not self._main:
      return {}
    return self._evaluation.evaluate(*features) | inside.health()

  def _write(self, step: int, row: Mapping[str, float]) -> None:
    if self._writer is not None:
      self._writer.write(step, row)
    for warning in self._watch.check(step, row):
      self.log(warning)


def _pixels(rows: Sequence[writers.Row]) -> dict[str, float]:
  """The probes on raw pixels, from the row that was written before step 1."""
  return {
    name.removeprefix(_PIXELS): value
    for row in rows[:1]
    for name, value in row.items()
    if name.startswith(_PIXELS)
  }
