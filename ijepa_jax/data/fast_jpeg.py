"""JPEG files to crops with the libraries of the extra 'fast'.

simplejpeg decodes with libjpeg-turbo, as Pillow does, without its copies.
cykooz_resizer is Pillow's antialiased BILINEAR in vector instructions: its
pixels differ by one level at most, and are the same on every processor. What
simplejpeg does not take (CMYK, damaged files) is left to Pillow.

Huffman decoding is most of the work at ImageNet's sizes, so decoding a part of
an image, or one at reduced size, saves little; see NOTES.md.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from ijepa_jax.data import decode
from ijepa_jax.errors import UserError

try:
  import cykooz_resizer
  import simplejpeg
except ImportError as error:
  _MISSING: str | None = str(error)
else:
  _MISSING = None

# Pixels decoded per pixel of the result, along a side, that a decoding at
# reduced size must leave.
_DENSITY = {'fast': 1.0, 'fastest': 0.6}
# The other scales of the DCT have no vector code: slower than full size.
_FACTORS = (8, 4, 2)

# EXIF orientation -> what turns the stored pixels upright, as a view.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
  1: lambda a: a,
  2: lambda a: a[:, ::-1],
  3: lambda a: a[::-1, ::-1],
  4: lambda a: a[::-1],
  5: lambda a: a.swapaxes(0, 1),
  6: lambda a: a[::-1].swapaxes(0, 1),
  7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
  8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


def require(mode: str) -> None:
  """Checks that what `data.decode` needs is installed.

  Args:
    mode: 'exact', 'fast' or 'fastest'.

  Raises:
    UserError: it is not.
  """
  if mode != 'exact' and _MISSING:
    raise UserError(
      f'data.decode={mode}: {_MISSING}; `pip install simplejpeg '
      "cykooz-resizer` (the extra 'fast'), or data.decode=exact"
    )


class Decoded(NamedTuple):
  """An upright image, perhaps at reduced size, and the part asked for.

  Attributes:
    pixels: uint8 (H, W, 3).
    edges: left, top, right and bottom of the part in these pixels.
  """

  pixels: np.ndarray
  edges: tuple[float, float, float, float]


def decode_for(
  file: bytes,
  opened: Image.Image,
  box: tuple[int, int, int, int],
  side: int,
  mode: str,
) -> Decoded | None:
  """Decodes a JPEG of which a part will be resized.

  Args:
    file: its bytes.
    opened: the same file by `decode.open_image`.
    box: left, top, width and height of the part, in pixels of the upright
      image at full size.
    side: that the part will have, pixels.
    mode: 'fast' or 'fastest'.

  Returns:
    None where Pillow has to do it, or to say what is wrong.
  """
  if opened.mode not in ('RGB', 'L'):
    return None
  left, top, width, height = box
  least = _DENSITY[mode] * side
  factor = next((f for f in _FACTORS if min(width, height) >= f * least), 1)
  # libjpeg rounds up.
  shape = (-(-opened.height // factor), -(-opened.width // factor))
  try:
    pixels = simplejpeg.decode_jpeg(
      file, 'RGB', min_height=shape[0], min_width=shape[1], min_factor=factor
    )
  except ValueError:
    return None
  if pixels.shape[:2] != shape:
    return None
  pixels = _UPRIGHT[decode.orientation(opened)](pixels)
  x, y = left / factor, top / factor
  # The last pixel of a reduced row or column may show less than the others;
  # turned, it is the first.
  full_width, full_height = decode.full_size(opened)
  if pixels.strides[1] < 0:
    x += pixels.shape[1] - full_width / factor
  if pixels.strides[0] < 0:
    y += pixels.shape[0] - full_height / factor
  edges = (x, y, x + width / factor, y + height / factor)
  return Decoded(pixels, edges)


def crop_and_resize(decoded: Decoded, side: int) -> np.ndarray:
  """Cuts out the part and resizes it to uint8 (S, S, 3)."""
  left, top, right, bottom = decoded.edges
  x, y = math.floor(left), math.floor(top)
  # Cut out first: the filter must not see what is outside.
  part = decoded.pixels[y : math.ceil(bottom), x : math.ceil(right)]
  kind = cykooz_resizer.PixelType.U8x3
  source = cykooz_resizer.ImageData(
    part.shape[1], part.shape[0], kind, part.tobytes()
  )
  result = cykooz_resizer.ImageData(side, side, kind)
  options = cykooz_resizer.ResizeOptions(
    resize_alg=cykooz_resizer.ResizeAlg.convolution(
      cykooz_resizer.FilterType.bilinear
    ),
    crop_box=cykooz_resizer.CropBox(
      left - x, top - y, right - left, bottom - top
    ),
  )
  # A resizer of its own: one must not serve two threads.
  cykooz_resizer.Resizer().resize(source, result, options)
  return np.frombuffer(result.get_buffer(), np.uint8).reshape(side, side, 3)
