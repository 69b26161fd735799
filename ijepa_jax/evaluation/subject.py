"""What is evaluated: an encoder with its baselines, on labelled images."""

import argparse
import dataclasses
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from ijepa_jax import checkpoint_files, errors, sharding
from ijepa_jax import encoder as encoders
from ijepa_jax.evaluation import extraction, labelled
from ijepa_jax.evaluation.feature_store import Store
from ijepa_jax.evaluation.tasks.context import Context, Images, Kind, Survey
from ijepa_jax.interop import reading
from ijepa_jax.models import layers

_KINDS: tuple[Kind, ...] = ('trained', 'init', 'pixels')
_BASELINES = _KINDS[1:]
# Classes that a line names.
_NAMED = 5


@dataclasses.dataclass(frozen=True)
class Subject:
  """The contexts that tasks are run in.

  Attributes:
    contexts: 'trained', and the baselines that the user wants.
    checkpoint: what was loaded, for results.json.
    data: likewise.
    seed: likewise.
    default_out: where results go unless the user says so.
  """

  contexts: dict[Kind, Context]
  checkpoint: dict[str, Any]
  data: str
  seed: int
  default_out: str

  def description(self) -> dict[str, Any]:
    """For results.json: what results must share to stand in one file."""
    context = self.contexts['trained']
    data: dict[str, Any] = {'source': self.data}
    for split in (context.images.train, context.images.test):
      data[split.name] = split.describe()
    return {
      'checkpoint': self.checkpoint,
      'data': {**data, 'image_size': context.image_size},
      'seed': self.seed,
    }

  def survey(self) -> dict[str, Any]:
    """For results.json: what was found when the images were read.

    Returns:
      `images`, how many could be read and which could not, by split; `unseen`,
      test images of classes that no image of train has, by label.
    """
    surveys = self.contexts['trained'].images.surveys
    images = {
      name: {'used': len(survey.records), 'broken': survey.bad}
      for name, survey in sorted(surveys.items())
    }
    return {'images': images, 'unseen': _unseen(surveys)}

  def tell_unseen(self, labels: Collection[str]) -> Iterator[str]:
    """Lines for the console about test images of classes that train lacks."""
    found = self.survey()
    for label, unseen in found['unseen'].items():
      if label not in labels:
        continue
      classes = [str(number) for number in unseen['classes']]
      named = ', '.join(classes[:_NAMED]) + ', ...' * (len(classes) > _NAMED)
      yield (
        f'{label}: classes that train lacks ({named}): {unseen["images"]:,} of '
        f'{found["images"]["test"]["used"]:,} test images, which count as wrong'
      )

  def summary(self) -> str:
    """Two lines for the console."""
    images = self.contexts['trained'].images
    step = self.checkpoint['step']
    return (
      f'{self.checkpoint["path"]}: {self.checkpoint["which"]} encoder'
      + (f', step {step:,}' if step else '')
      + f'\n{self.data}: {len(images.train):,} images to fit on '
      f'({images.train.split}), {len(images.test):,} to measure on '
      f'({images.test.split}); labels {", ".join(images.labels) or "none"}'
    )


def _unseen(surveys: Mapping[str, Survey]) -> dict[str, dict[str, Any]]:
  """Label -> test images of classes that train lacks, and those classes."""
  unseen: dict[str, dict[str, Any]] = {}
  if len(surveys) < 2:
    return unseen
  for name, labels in surveys['test'].labels.items():
    classes = np.setdiff1d(labels, surveys['train'].labels[name])
    if len(classes):
      count = int(np.isin(labels, classes).sum())
      unseen[name] = {'images': count, 'classes': classes.tolist()}
  return unseen


def open_subject(
  args: argparse.Namespace,
  config: ml_collections.ConfigDict,
  store: Store,
  log: Callable[[str], None],
) -> Subject:
  """Loads the encoder, makes its untrained twin, opens the images.

  Args:
    args: of the command.
    config: reads `mesh`.
    store: of features.
    log: tells the user something.

  Raises:
    UserError: something in `args` does not exist or does not fit.
  """
  baselines = _baselines(args.baselines)
  held = reading.open_weights(args.checkpoint, args.heads, '--checkpoint')
  trained = encoders.from_weights(held, args.which, args.image_size, args.dtype)
  train, test = labelled.open_splits(
    labelled.Request(
      data=args.data,
      train_split=args.train_split,
      test_split=args.test_split,
      max_train=args.max_train,
      max_test=args.max_test,
      image_size=trained.architecture.image_size,
      seed=args.seed,
      data_dir=args.data_dir,
    )
  )
  images = Images(train, test, _labels(args.labels, train))
  mesh = sharding.make_mesh(config)
  extractor = extraction.Extractor(mesh, args.batch_size, store, log)
  init_std = held.init_std or layers.INIT_STD
  identity = extraction.identify(trained)
  models = {'trained': (_placed(trained, mesh), identity)}
  if 'init' in baselines:
    init = encoders.untrained(trained, init_std, args.seed)
    models['init'] = _placed(init, mesh), extraction.identify(init)
  if 'pixels' in baselines:
    models['pixels'] = models['trained']  # its sizes are what is wanted
  contexts = {
    kind: Context(
      kind,
      *models[kind],
      extractor=extractor,
      images=images,
      seed=args.seed,
      log=log,
    )
    for kind in _KINDS
    if kind in models
  }
  path = os.path.abspath(os.path.expanduser(args.checkpoint))
  return Subject(
    contexts,
    {
      'path': args.checkpoint,
      'which': 'single' if held.single else args.which,
      'format': held.format,
      'step': held.progress.get('step'),
      **identity,
      'crop': trained.crop,
      'init_std': init_std,
    },
    args.data,
    args.seed,
    _default_out(path),
  )


def _placed(
  model: encoders.Encoder, mesh: jax.sharding.Mesh
) -> encoders.Encoder:
  """A copy on every device; from the host, as other processes have some."""
  return jax.device_put(
    jax.tree.map(np.asarray, model), sharding.replicated(mesh)
  )


def _labels(text: str | None, train: labelled.Split) -> tuple[str, ...]:
  known = tuple(train.source.labels)
  wanted = known if text is None else tuple(dict.fromkeys(text.split(',')))
  for name in wanted:
    if name not in known:
      raise errors.UserError(
        f'--labels: {name!r} is not one of {", ".join(known) or "none"}'
      )
  return wanted


def _baselines(text: str) -> tuple[Kind, ...]:
  wanted = [] if text == 'none' else text.split(',')
  for name in wanted:
    if name not in _BASELINES:
      raise errors.UserError(
        f'--baselines: {name!r} is not one of {", ".join(_BASELINES)}, none'
      )
  return tuple(kind for kind in _BASELINES if kind in wanted)


def _default_out(path: str) -> str:
  """RUN/evaluation, also of RUN/checkpoints/STEP, or a folder beside a file.

  Never within a checkpoint, which is removed some day.
  """
  above, name = os.path.split(os.path.dirname(path))
  if name == checkpoint_files.FOLDER:
    return os.path.join(above, 'evaluation')
  if os.path.isdir(path):
    return os.path.join(path, 'evaluation')
  return f'{path}.evaluation'
