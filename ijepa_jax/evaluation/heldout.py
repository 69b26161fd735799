"""The fixed images that a run is judged on while it trains."""

import ml_collections
import numpy as np

from ijepa_jax import errors, rows
from ijepa_jax.data import sources, threads, transforms
from ijepa_jax.evaluation import labelled
from ijepa_jax.evaluation.online import LabelledImages

# Which records are chosen does not depend on the run's seed.
_SEED = 0

# Images of a set: of a single one there is neither a variance nor a pair.
_LEAST = 2

# Images that are read while others are copied.
_AHEAD = 64


def load_sets(
  config: ml_collections.ConfigDict,
  source: sources.Source,
  shares: rows.Shares,
) -> tuple[LabelledImages, LabelledImages]:
  """Images to fit the probes on, and others to measure on.

  Both are random subsets. Without `eval.split` both come from the training
  split, of different records: the encoder has then seen the test images, but
  never a label.

  Args:
    config: reads `data`, `eval`, `model.image_size`.
    source: the training split.
    shares: which of the images this process loads.

  Raises:
    UserError: the splits have other labels or classes, the one to measure on
      has none, or there are too few images.
  """
  if config.eval.split is None:
    test_source = source
  else:
    test_source = sources.open_source(
      config.data.source,
      config.data.path,
      config.eval.split,
      image_size=config.model.image_size,
      seed=_SEED,
    )
  if test_source is not source:
    labelled.require_same_labels(source, test_source, 'eval.split')
    if test_source.labels and not labelled.is_labelled(test_source):
      raise errors.UserError(
        f'eval.split={config.eval.split!r}: {test_source.name} has no labels; '
        'expected another split, or eval.every=0'
      )
  fit, measure = config.eval.train_examples, config.eval.test_examples
  if test_source is source:
    chosen = _choose(source, fit + measure)
    # A set too small for both is cut in the proportion that was asked for.
    cut = round(len(chosen) * fit / (fit + measure))
    cut = max(_LEAST, min(cut, len(chosen) - _LEAST))
    train, test = chosen[:cut], chosen[cut:]
  else:
    train, test = _choose(source, fit), _choose(test_source, measure)
  if min(len(train), len(test)) < _LEAST:
    raise errors.UserError(
      f'{len(train)} of the images of {source.name} to fit the probes on, '
      f'{len(test)} of {test_source.name} to measure on: expected {_LEAST} of '
      'each at least; more images, or eval.every=0'
    )
  transform = transforms.EvalTransform(
    config.model.image_size, config.eval.crop
  )
  return (
    _load(source, train, transform, shares),
    _load(test_source, test, transform, shares),
  )


def _choose(source: sources.Source, count: int) -> np.ndarray:
  """Different record numbers, all of them if there are fewer than `count`."""
  rng = np.random.default_rng(_SEED)
  return rng.choice(
    len(source), min(count, len(source)), replace=False, shuffle=True
  )


def _load(
  source: sources.Source,
  records: np.ndarray,
  transform: transforms.EvalTransform,
  shares: rows.Shares,
) -> LabelledImages:
  def load(record: np.int64) -> transforms.Loaded:
    rng = np.random.default_rng(_SEED)
    return transforms.load(source, int(record), transform, rng)

  mine = records[shares.mine(len(records))]
  size = transform.image_size
  images = np.empty((len(mine), size, size, 3), np.uint8)
  labels = {name: np.empty(len(mine), np.int32) for name in source.labels}
  for row, example in enumerate(threads.in_threads(load, mine, _AHEAD)):
    images[row] = example.image
    for name, y in labels.items():
      y[row] = example.labels[name]
  everybodys = {
    name: shares.gather(y, len(records)) for name, y in labels.items()
  }
  return LabelledImages(images, everybodys, len(records))
