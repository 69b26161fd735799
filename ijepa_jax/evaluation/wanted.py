"""Which features of a split: layers, pooling, and what is done to an image."""

import dataclasses
from typing import Any

import numpy as np

from ijepa_jax.data import decode, transforms
from ijepa_jax.evaluation import corruptions

Plain = transforms.EvalTransform | transforms.WholeImage


@dataclasses.dataclass(frozen=True)
class View:
  """An augmented copy of a split, half of it mirrored.

  The same for the same numbers.

  Attributes:
    number: of the copy.
    seed: of all copies.
    crop_scale: least and largest share of the image that a crop has; None: the
      centre, as without augmentation.
  """

  number: int
  seed: int
  crop_scale: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Wanted:
  """Which features.

  Attributes:
    layers: blocks from the end, -1 is the last; rising.
    pool: average over patches, or keep one row per patch.
    view: None: the centre crop.
    whole: the whole image, squeezed into a square, in place of the centre.
    corruption: done to the crop; None: nothing.
  """

  layers: tuple[int, ...]
  pool: bool
  view: View | None = None
  whole: bool = False
  corruption: corruptions.Corruption | None = None

  def describe(self) -> dict[str, Any]:
    """For the key of the cache."""
    return dataclasses.asdict(self)


def plain_transform(side: int, crop: float, wanted: Wanted) -> Plain:
  """What is done to an image without augmentation."""
  if wanted.whole:
    return transforms.WholeImage(side)
  return transforms.EvalTransform(side, crop)


def read(
  source: Any,
  plain: Plain,
  wanted: Wanted,
  record: np.int64,
) -> tuple[np.ndarray, dict[str, int]] | str:
  """Pixels and labels of a record, or why there are none."""
  index, view = int(record), wanted.view
  transform: transforms.Transform = plain
  seed: tuple[int, ...] = (0,)
  if view is not None:
    seed = (view.seed, view.number, index)
    if view.crop_scale is not None:
      transform = transforms.TrainTransform(
        plain.image_size, view.crop_scale, flip=True
      )
  rng = np.random.default_rng(seed)
  try:
    example = source[index]
    image = transforms.apply(example['image'], transform, rng)
  except OSError as error:
    return error.strerror or str(error)
  except decode.BadImage as error:
    return str(error)
  if view is not None and view.crop_scale is None and rng.random() < 0.5:
    image = image[:, ::-1]
  if wanted.corruption is not None:
    image = wanted.corruption(image, index)
  return image, example['labels']
