"""Crops and augmentations: an image and a random generator to uint8 pixels.

Every random draw comes from the generator given, so that a record's pixels
are a function of its seed. All ways to decode make the same draws.
"""

import dataclasses
import math
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from ijepa_jax.data import decode, fast_jpeg
from ijepa_jax.data.sources import Source
from ijepa_jax.errors import DataError

# torchvision's RandomResizedCrop: the width over height of a crop, and how
# often it tries before it takes the centre.
_RATIO = (3 / 4, 4 / 3)
_TRIES = 10

# A broken record is replaced by one of this many that follow it. More in a row
# is a broken data set (or a disk that is gone), not a broken record.
_NEIGHBOURS = 16
# What a batch holds instead of the number of broken records in that case.
GIVEN_UP = -1


class Box(NamedTuple):
  """A crop in pixels."""

  left: int
  top: int
  width: int
  height: int


class Transform(Protocol):
  """What `apply` needs: choose a crop by size alone, then change its pixels."""

  @property
  def image_size(self) -> int:
    """Side S of the result in pixels."""

  def box(self, size: tuple[int, int], rng: np.random.Generator) -> Box:
    """Chooses the crop of an image of this (width, height)."""

  def finish(
    self, image: Image.Image | np.ndarray, rng: np.random.Generator
  ) -> np.ndarray:
    """Turns the crop, already resized, into uint8 (S, S, 3)."""


@dataclasses.dataclass(frozen=True)
class TrainTransform:
  """The recipe's RandomResizedCrop, and three options that are off in it.

  The crop is torchvision's: share of the area uniform in `crop_scale`, aspect
  ratio log-uniform in [3/4, 4/3], resized with Pillow's antialiased BILINEAR.

  Attributes:
    image_size: S, pixels.
    crop_scale: least and largest share of the image's area.
    flip: mirror with probability 0.5.
    color_jitter: strength s of SimCLR's jitter (arXiv 2002.05709, appendix A):
      with probability 0.8, brightness, contrast and saturation within 0.8 s
      and hue within 0.2 s, in random order. 0 is off.
    blur: with probability 0.5, Gaussian of sigma 0.1 to 2 pixels.
  """

  image_size: int
  crop_scale: tuple[float, float] = (0.3, 1.0)
  flip: bool = False
  color_jitter: float = 0.0
  blur: bool = False

  def __call__(
    self, image: Image.Image, rng: np.random.Generator
  ) -> np.ndarray:
    """Transforms a decoded RGB image to uint8 (S, S, 3)."""
    box = self.box(image.size, rng)
    return self.finish(_crop_and_resize(image, box, self.image_size), rng)

  def box(self, size: tuple[int, int], rng: np.random.Generator) -> Box:
    """Chooses the crop of an image of this (width, height)."""
    width, height = size
    low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
    for _ in range(_TRIES):
      area = width * height * rng.uniform(*self.crop_scale)
      ratio = math.exp(rng.uniform(low, high))
      w = round(math.sqrt(area * ratio))
      h = round(math.sqrt(area / ratio))
      if 0 < w <= width and 0 < h <= height:
        top = int(rng.integers(0, height - h + 1))
        left = int(rng.integers(0, width - w + 1))
        return Box(left, top, w, h)
    w, h = width, height
    if width / height < _RATIO[0]:
      h = round(width / _RATIO[0])
    elif width / height > _RATIO[1]:
      w = round(height * _RATIO[1])
    return Box((width - w) // 2, (height - h) // 2, w, h)

  def finish(
    self, image: Image.Image | np.ndarray, rng: np.random.Generator
  ) -> np.ndarray:
    """Augments a crop of S x S pixels and returns it as uint8 (S, S, 3)."""
    if not (self.flip or self.color_jitter or self.blur):
      return np.asarray(image)
    if isinstance(image, np.ndarray):
      image = Image.fromarray(image)
    if self.flip and rng.random() < 0.5:
      image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if self.color_jitter > 0 and rng.random() < 0.8:
      image = _jitter(image, self.color_jitter, rng)
    if self.blur and rng.random() < 0.5:
      image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
    return np.asarray(image)


class _Unchanged:
  """Transforms that only crop and resize."""

  def finish(
    self,
    image: Image.Image | np.ndarray,
    rng: np.random.Generator | None = None,
  ) -> np.ndarray:
    """Returns the resized crop as uint8 (S, S, 3)."""
    return np.asarray(image)


@dataclasses.dataclass(frozen=True)
class EvalTransform(_Unchanged):
  """A central square, resized: no randomness.

  The same as resizing the shorter side to `image_size / crop` and cutting out
  the centre, but for rounding, with one resize of fewer pixels.

  Attributes:
    image_size: S, pixels.
    crop: side of the square as a share of the shorter side.
  """

  image_size: int
  crop: float = 0.875

  def __call__(self, image: Image.Image) -> np.ndarray:
    """Transforms a decoded RGB image to uint8 (S, S, 3)."""
    box = self.box(image.size)
    return self.finish(_crop_and_resize(image, box, self.image_size))

  def box(
    self, size: tuple[int, int], rng: np.random.Generator | None = None
  ) -> Box:
    """The central square of an image of this (width, height)."""
    width, height = size
    side = max(1, round(self.crop * min(size)))
    return Box((width - side) // 2, (height - side) // 2, side, side)


@dataclasses.dataclass(frozen=True)
class WholeImage(_Unchanged):
  """The whole image, resized to a square whatever its shape: no randomness.

  For masks and boxes, of which nothing may be cut off.

  Attributes:
    image_size: S, pixels.
  """

  image_size: int

  def box(
    self, size: tuple[int, int], rng: np.random.Generator | None = None
  ) -> Box:
    """All of an image of this (width, height)."""
    return Box(0, 0, *size)


def apply(
  image: bytes | np.ndarray,
  transform: Transform,
  rng: np.random.Generator,
  mode: str = 'exact',
) -> np.ndarray:
  """Decodes an image and transforms it.

  In the fast modes the crop of a JPEG is chosen before it is decoded, so that
  of a large one no more pixels are made than are needed.

  Args:
    image: the bytes of a file, or uint8 (H, W, 3).
    transform: a `TrainTransform` or `EvalTransform`.
    rng: the source of all randomness; not advanced when the image is broken.
    mode: `data.decode`: 'exact' is Pillow; 'fast' and 'fastest' see
      `fast_jpeg`, and do what is no JPEG as 'exact' does.

  Returns:
    uint8 (S, S, 3), S = `transform.image_size`.

  Raises:
    BadImage: the image cannot be decoded.
  """
  side = transform.image_size
  opened = decode.open_image(image)
  if mode != 'exact' and isinstance(image, bytes) and decode.is_jpeg(opened):
    before = rng.bit_generator.state
    box = transform.box(decode.full_size(opened), rng)
    decoded = fast_jpeg.decode_for(image, opened, box, side, mode)
    if decoded is not None:
      return transform.finish(fast_jpeg.crop_and_resize(decoded, side), rng)
    rng.bit_generator.state = before
  rgb = decode.pixels(opened)
  box = transform.box(rgb.size, rng)
  return transform.finish(_crop_and_resize(rgb, box, side), rng)


@dataclasses.dataclass(frozen=True)
class Loaded:
  """One example, and what it took to get it.

  Attributes:
    image: uint8 (S, S, 3).
    labels: label name -> class.
    index: the record used.
    bad: how many broken records were skipped: those just before `index`.
  """

  image: np.ndarray
  labels: dict[str, int]
  index: int
  bad: int


def load(
  source: Source,
  index: int,
  transform: Transform,
  rng: np.random.Generator,
  mode: str = 'exact',
) -> Loaded:
  """Loads record `index`, or the first readable one after it.

  A broken record is replaced in place, so that all other records keep their
  positions and the batches stay a function of the step.

  Args:
    source: any source; the record after the last is the first.
    index: the record wanted, 0 to len(source) - 1.
    transform: a `TrainTransform` or `EvalTransform`.
    rng: the source of all randomness.
    mode: `data.decode`, see `apply`.

  Returns:
    The example; the indices skipped are the `bad` ones from `index` on.

  Raises:
    DataError: record `index` and its 16 neighbours are all broken.
  """
  failures: list[tuple[str, Exception]] = []
  for bad in range(min(_NEIGHBOURS + 1, len(source))):
    record = (index + bad) % len(source)
    try:
      example = source[record]
      image = apply(example['image'], transform, rng, mode)
    except (decode.BadImage, OSError) as error:
      failures.append((source.record_id(record), error))
      continue
    return Loaded(image, example['labels'], record, bad)
  names = ', '.join(name for name, _ in failures)
  raise DataError(
    f'{len(failures)} records of {source.name} in a row cannot be read '
    f'(the first: {failures[0][1]}): {names}'
  )


def _crop_and_resize(image: Image.Image, box: Box, side: int) -> Image.Image:
  """Cuts out `box` and resizes it to side x side."""
  # Cropped first, like torchvision: with `resize(box=...)` alone the pixels
  # just outside the crop would bleed into it.
  right, bottom = box.left + box.width, box.top + box.height
  crop = image.crop((box.left, box.top, right, bottom))
  return crop.resize((side, side), Image.Resampling.BILINEAR)


def _jitter(
  image: Image.Image, strength: float, rng: np.random.Generator
) -> Image.Image:
  """SimCLR's colour jitter, as torchvision's ColorJitter does it on Pillow."""
  low, high = max(0.0, 1 - 0.8 * strength), 1 + 0.8 * strength
  enhancers = (
    ImageEnhance.Brightness,
    ImageEnhance.Contrast,
    ImageEnhance.Color,
    None,
  )
  for step in rng.permutation(len(enhancers)):
    enhancer = enhancers[step]
    if enhancer is None:
      image = _shift_hue(image, rng.uniform(-0.2, 0.2) * strength)
    else:
      image = enhancer(image).enhance(rng.uniform(low, high))
  return image


def _shift_hue(image: Image.Image, turn: float) -> Image.Image:
  """Turns the hue by a share of the full circle."""
  hue, saturation, value = image.convert('HSV').split()
  shift = round(turn * 255)
  hue = hue.point([(h + shift) % 256 for h in range(256)])
  return Image.merge('HSV', (hue, saturation, value)).convert('RGB')
