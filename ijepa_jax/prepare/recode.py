"""Stores images smaller: fewer pixels, as JPEG."""

import dataclasses
import io

import PIL
from PIL import Image, features

from ijepa_jax.data import decode


@dataclasses.dataclass(frozen=True)
class Recode:
  """How to store images whose shorter side is longer than `short_side`.

  Attributes:
    short_side: their shorter side afterwards, pixels.
    quality: of the JPEG files that they become, 1 to 100.
  """

  short_side: int
  quality: int

  def describe(self) -> str:
    """What the manifest says."""
    return f'shorter side at most {self.short_side}, quality {self.quality}'

  def plan(self) -> list[str | int | None]:
    """All that the bytes depend on: other libraries write other files."""
    turbo = features.version('libjpeg_turbo')
    return [self.short_side, self.quality, PIL.__version__, turbo]

  def __call__(self, image: bytes) -> bytes:
    """Recodes one image file, or returns it as it is if it is small enough.

    Raises:
      BadImage: it cannot be decoded.
    """
    opened = decode.open_image(image)
    shorter = min(opened.size)
    if shorter <= self.short_side:
      decode.pixels(opened, min_size=(1, 1))  # raises, if it is damaged
      return image
    rgb = decode.pixels(opened)
    width, height = (
      max(1, round(side * self.short_side / shorter)) for side in rgb.size
    )
    # Bicubic keeps more of the detail than the bilinear of the crop, which
    # comes on top of it.
    small = rgb.resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    small.save(file, 'JPEG', quality=self.quality, optimize=True)
    return file.getvalue()
