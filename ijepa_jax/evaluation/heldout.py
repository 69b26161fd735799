"""The fixed images that a run is judged on while it trains."""

import concurrent.futures
import os

import ml_collections
import numpy as np

from ijepa_jax import errors
from ijepa_jax.data import sources, transforms
from ijepa_jax.evaluation.online import LabelledImages

# Which records are chosen does not depend on the run's seed.
_SEED = 0


def load_sets(
  config: ml_collections.ConfigDict, source: sources.Source
) -> tuple[LabelledImages, LabelledImages]:
  """Images to fit the probes on, and others to measure on.

  Both are random subsets. Without `eval.split` both come from the training
  split, of different records: the encoder has then seen the test images, but
  never a label.

  Args:
    config: reads `data`, `eval`, `model.image_size`.
    source: the training split.
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
    _load(source, train, transform),
    _load(test_source, test, transform),
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
) -> LabelledImages:
  def load(record: np.int64) -> transforms.Loaded:
    rng = np.random.default_rng(_SEED)
    return transforms.load(source, int(record), transform, rng)

  # Pillow releases the interpreter lock while it decodes.
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    loaded = list(pool.map(load, records))
  return LabelledImages(
    images=np.stack([example.image for example in loaded]),
    labels={
      name: np.array([example.labels[name] for example in loaded])
      for name in source.labels
    },
  )
