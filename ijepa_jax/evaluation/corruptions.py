"""Common corruptions of images, each at five severities.

A short list of those of Hendrycks & Dietterich 2019 (arXiv 1903.12261), drawn
with numpy and Pillow, with that paper's numbers for 224 pixels; lengths are
shares of the side, so that small images are not lost altogether. Not their
files: figures are not comparable with published ones to the last digit.
"""

import dataclasses
import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

SEVERITIES = (1, 2, 3, 4, 5)
_SIDE = 224  # of the images that the numbers are for


@dataclasses.dataclass(frozen=True)
class Corruption:
  """One corruption.

  Attributes:
    name: a key of `NAMES`.
    severity: 1 to 5.
    seed: of its noise.
  """

  name: str
  severity: int
  seed: int

  def __call__(self, image: np.ndarray, index: int) -> np.ndarray:
    """Corrupts an image.

    Args:
      image: `(S, S, 3)` uint8.
      index: of the record; with the seed it makes the noise.

    Returns:
      `(S, S, 3)` uint8.
    """
    levels, function = _CORRUPTIONS[self.name]
    rng = np.random.default_rng((self.seed, index))
    return function(image, levels[self.severity - 1], rng)


_Function = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def _gaussian_noise(
  image: np.ndarray, deviation: float, rng: np.random.Generator
) -> np.ndarray:
  return _bytes(image / 255 + rng.normal(0.0, deviation, image.shape))


def _shot_noise(
  image: np.ndarray, photons: float, rng: np.random.Generator
) -> np.ndarray:
  return _bytes(rng.poisson(image / 255 * photons) / photons)


def _blur(
  image: np.ndarray, sigma: float, rng: np.random.Generator
) -> np.ndarray:
  radius = sigma * len(image) / _SIDE
  blurred = Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius))
  return np.asarray(blurred)


def _brightness(
  image: np.ndarray, added: float, rng: np.random.Generator
) -> np.ndarray:
  hsv = np.asarray(Image.fromarray(image).convert('HSV')).astype(np.int32)
  hsv[..., 2] = np.minimum(hsv[..., 2] + round(255 * added), 255)
  bright = Image.fromarray(hsv.astype(np.uint8), 'HSV')
  return np.asarray(bright.convert('RGB'))


def _contrast(
  image: np.ndarray, factor: float, rng: np.random.Generator
) -> np.ndarray:
  x = image / 255
  mean = x.mean((0, 1))
  return _bytes((x - mean) * factor + mean)


def _jpeg(
  image: np.ndarray, quality: float, rng: np.random.Generator
) -> np.ndarray:
  file = io.BytesIO()
  Image.fromarray(image).save(file, 'JPEG', quality=int(quality))
  return np.asarray(Image.open(file))


def _pixelate(
  image: np.ndarray, share: float, rng: np.random.Generator
) -> np.ndarray:
  side = len(image)
  small = max(1, round(side * share))
  whole = Image.fromarray(image)
  coarse = whole.resize((small, small), Image.Resampling.BOX)
  return np.asarray(coarse.resize((side, side), Image.Resampling.BOX))


def _bytes(x: np.ndarray) -> np.ndarray:
  return np.rint(255 * np.clip(x, 0, 1)).astype(np.uint8)


_CORRUPTIONS: dict[str, tuple[tuple[float, ...], _Function]] = {
  'gaussian_noise': ((0.08, 0.12, 0.18, 0.26, 0.38), _gaussian_noise),
  'shot_noise': ((60, 25, 12, 5, 3), _shot_noise),
  'gaussian_blur': ((1, 2, 3, 4, 6), _blur),
  'brightness': ((0.1, 0.2, 0.3, 0.4, 0.5), _brightness),
  'contrast': ((0.4, 0.3, 0.2, 0.1, 0.05), _contrast),
  'jpeg': ((25, 18, 15, 10, 7), _jpeg),
  'pixelate': ((0.6, 0.5, 0.4, 0.3, 0.25), _pixelate),
}
NAMES = tuple(_CORRUPTIONS)
