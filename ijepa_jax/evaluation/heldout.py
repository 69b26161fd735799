"""The fixed images that a run is judged on while it trains."""

import ml_collections
import numpy as np

from ijepa_jax import errors, rows
from ijepa_jax.data import sources, threads, transforms
from ijepa_jax.evaluation.online import LabelledImages

# Which records are chosen does not depend on the run's seed.
_SEED = 0


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
  if test_source.labels.keys() != source.labels.keys():
    raise errors.UserError(
      f'eval.split={config.eval.split!r} has the labels '
      f'{list(test_source.labels) or "none"}, data.split='
      f'{config.data.split!r} has {list(source.labels) or "none"}: expected '
      'the same; nearest: none'
    )
  fit, measure = config.eval.train_examples, config.eval.test_examples
  if test_source is source:
    chosen = _choose(source, fit + measure)
    # A set too small for both is cut in the proportion that was asked for.
    cut = max(2, round(len(chosen) * fit / (fit + measure)))
    train, test = chosen[:cut], chosen[cut:]
  else:
    train, test = _choose(source, fit), _choose(test_source, measure)
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
  loaded = list(threads.in_threads(load, mine, len(mine)))
  size = transform.image_size
  images = np.zeros((len(loaded), size, size, 3), np.uint8)
  for row, example in enumerate(loaded):
    images[row] = example.image
  labels = {}
  for name in source.labels:
    y = np.array([example.labels[name] for example in loaded], np.int32)
    labels[name] = shares.gather(y, len(records))
  return LabelledImages(images, labels, len(records))
