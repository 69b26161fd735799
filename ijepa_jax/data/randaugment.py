"""RandAugment (Cubuk et al. 2020, arXiv 1909.13719), on Pillow.

Operations and strengths are those of timm's `rand-m9-mstd0.5-inc1`, which MAE
fine-tunes with, and by MAE's recipe the I-JEPA paper: each of two operations,
drawn with replacement, is applied with probability one half, at a magnitude
drawn from a normal distribution around 9 of 10.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from ijepa_jax.data import transforms

_MOST = 10.0  # the largest magnitude
_PROBABILITY = 0.5
# ImageNet's mean: what comes in from outside of the image.
_FILL = (124, 116, 104)
_RESAMPLING = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)

# (image, strength in 0..1, generator) -> image.
_Operation = Callable[[Image.Image, float, np.random.Generator], Image.Image]


@dataclasses.dataclass(frozen=True)
class RandAugment:
  """Distorts an image at random.

  Attributes:
    layers: operations per image.
    magnitude: mean strength, 0 to 10.
    std: its standard deviation.
  """

  layers: int = 2
  magnitude: float = 9.0
  std: float = 0.5

  def __call__(
    self, image: Image.Image, rng: np.random.Generator
  ) -> Image.Image:
    """Returns an image of the same size; all draws come from `rng`."""
    for name in rng.choice(sorted(OPERATIONS), self.layers):
      if rng.random() < _PROBABILITY:
        strength = rng.normal(self.magnitude, self.std) / _MOST
        operation = OPERATIONS[str(name)]
        image = operation(image, float(np.clip(strength, 0, 1)), rng)
    return image


@dataclasses.dataclass(frozen=True)
class AugmentedTransform(transforms.TrainTransform):
  """A random crop and flip, then RandAugment."""

  randaugment: RandAugment = RandAugment()

  def finish(
    self, image: Image.Image | np.ndarray, rng: np.random.Generator
  ) -> np.ndarray:
    """Augments a crop of S x S pixels and returns it as uint8 (S, S, 3)."""
    crop = Image.fromarray(super().finish(image, rng))
    return np.asarray(self.randaugment(crop, rng))


def _sign(value: float, rng: np.random.Generator) -> float:
  return value if rng.random() < 0.5 else -value


def _posterize(
  image: Image.Image, strength: float, rng: np.random.Generator
) -> Image.Image:
  del rng
  # timm's strength is of 10 and truncated; 0 bits would be a black image.
  return ImageOps.posterize(image, max(1, 4 - int(4 * strength)))


def _solarize_add(
  image: Image.Image, strength: float, rng: np.random.Generator
) -> Image.Image:
  del rng
  add = int(110 * strength)
  table = [min(255, i + add) if i < 128 else i for i in range(256)]
  return image.point(table * 3)


def _enhance(
  enhancer: Callable[[Image.Image], Any],
) -> _Operation:
  """Colour, contrast, brightness or sharpness, up or down; 1 is no change."""

  def operation(
    image: Image.Image, strength: float, rng: np.random.Generator
  ) -> Image.Image:
    factor = max(0.1, 1 + _sign(0.9 * strength, rng))
    return enhancer(image).enhance(factor)

  return operation


def _affine(
  column: int, most: float, *, shift: bool = False, vertical: bool = False
) -> _Operation:
  """Shears or shifts: one of the six numbers of an affine map.

  Args:
    column: which of the six.
    most: its size at full strength.
    shift: in units of the image's width, or of its height.
    vertical: of its height.
  """

  def operation(
    image: Image.Image, strength: float, rng: np.random.Generator
  ) -> Image.Image:
    matrix = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    unit = image.size[vertical] if shift else 1
    matrix[column] = unit * _sign(most * strength, rng)
    return image.transform(
      image.size,
      Image.Transform.AFFINE,
      matrix,
      resample=_RESAMPLING[int(rng.integers(2))],
      fillcolor=_FILL,
    )

  return operation


def _rotate(
  image: Image.Image, strength: float, rng: np.random.Generator
) -> Image.Image:
  return image.rotate(
    _sign(30 * strength, rng),
    resample=_RESAMPLING[int(rng.integers(2))],
    fillcolor=_FILL,
  )


OPERATIONS: dict[str, _Operation] = {
  'autocontrast': lambda image, strength, rng: ImageOps.autocontrast(image),
  'equalize': lambda image, strength, rng: ImageOps.equalize(image),
  'invert': lambda image, strength, rng: ImageOps.invert(image),
  'rotate': _rotate,
  'posterize': _posterize,
  'solarize': lambda image, strength, rng: ImageOps.solarize(
    image, 256 - int(256 * strength)
  ),
  'solarize_add': _solarize_add,
  'color': _enhance(ImageEnhance.Color),
  'contrast': _enhance(ImageEnhance.Contrast),
  'brightness': _enhance(ImageEnhance.Brightness),
  'sharpness': _enhance(ImageEnhance.Sharpness),
  'shear_x': _affine(1, 0.3),
  'shear_y': _affine(3, 0.3),
  'translate_x': _affine(2, 0.45, shift=True),
  'translate_y': _affine(5, 0.45, shift=True, vertical=True),
}
