"""Augmented batches of labelled images, a function of seed and step."""

import contextlib
import dataclasses
from collections.abc import Iterator

import grain
import numpy as np

from ijepa_jax import errors
from ijepa_jax.data import decode, pipeline, randaugment, sources, transforms
from ijepa_jax.evaluation.finetuning.recipe import Recipe

# Separates the augmentations' random stream from others of the same seed.
_STREAM = 0x66696E65


@dataclasses.dataclass(frozen=True)
class _Load:
  """This process's rows of batch `step`."""

  source: sources.Source
  label: str
  records: np.ndarray
  stream: grain.MapDataset  # endless: positions in `records`
  transform: transforms.TrainTransform
  seed: int
  batch_size: int
  rows: np.ndarray

  def __call__(self, step: int) -> dict[str, np.ndarray]:
    side = self.transform.image_size
    images = np.empty((len(self.rows), side, side, 3), np.uint8)
    labels = np.empty(len(self.rows), np.int32)
    for row, position in enumerate(step * self.batch_size + self.rows):
      record = int(self.records[self.stream[int(position)]])
      rng = np.random.default_rng((_STREAM, self.seed, int(position)))
      example = read(self.source, record)
      images[row] = transforms.apply(example['image'], self.transform, rng)
      labels[row] = example['labels'][self.label]
    return {'image': images, 'label': labels}


def read(source: sources.Source, record: int) -> dict:
  """Reads a record that could be read before.

  Raises:
    DataError: it cannot any more.
  """
  try:
    example = source[record]
    decode.open_image(example['image'])
  except (OSError, decode.BadImage) as error:
    raise errors.DataError(
      f'{source.record_id(record)} could be read before and cannot any more: '
      f'{error}'
    ) from error
  return example


@contextlib.contextmanager
def batches(
  source: sources.Source,
  records: np.ndarray,
  label: str,
  recipe: Recipe,
  *,
  image_size: int,
  seed: int,
  batch_size: int,
  steps: int,
  rows: np.ndarray,
  workers: int,
) -> Iterator[Iterator[dict[str, np.ndarray]]]:
  """Iterates over the batches of a training, read ahead.

  Each epoch takes every record once, in another order.

  Args:
    source: where the records are.
    records: `(n,)` those to train on, all readable.
    label: name of the label wanted.
    recipe: crops and augmentation.
    image_size: side in pixels.
    seed: of order and augmentation.
    batch_size: images per step on all processes, at most n.
    steps: how many batches.
    rows: those of a batch that this process holds.
    workers: processes that read; 0: a thread of this one.
  """
  crop, flip = recipe.crop_scale, recipe.flip
  transform = transforms.TrainTransform(image_size, crop, flip)
  if recipe.randaugment is not None:
    augment = randaugment.RandAugment(magnitude=recipe.randaugment)
    transform = randaugment.AugmentedTransform(
      image_size, crop, flip, randaugment=augment
    )
  stream = grain.MapDataset.range(len(records)).shuffle(seed).repeat()
  load = _Load(
    source, label, records, stream, transform, seed, batch_size, rows
  )
  dataset = grain.MapDataset.range(steps).map(load)
  with pipeline.batches(dataset, 0, steps, workers) as iterator:
    yield iterator
