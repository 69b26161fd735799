"""Image files to RGB pixels, and one error for everything that is broken.

What the odd ones become:

* EXIF orientation is applied; of an animation the first frame is taken.
* Transparency is put on white, the background such files are drawn for.
* 16-bit grey is scaled to 8 bits (Pillow's own `convert` clips at 255). Float
  and 32-bit files are scaled from the smallest of [0, 1] (floats only),
  [0, 255], [0, 65535] that holds all their values, or else from their own
  minimum and maximum.
* What a file is comes from its content, never from its suffix.
"""

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

# The formats we open. A closed list, because some of Pillow's other plugins
# run external programs (EPS starts Ghostscript). GIF has no suffix of ours but
# is often named .jpg.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'TIFF', 'GIF')

# What Pillow's plugins raise on damaged files: they check little and stumble
# over the nonsense they read. The first four come within minutes of flipping
# bytes, the others are known from single reports.
_BROKEN = (
  OSError,
  SyntaxError,
  ValueError,
  TypeError,
  AssertionError,
  AttributeError,
  EOFError,
  IndexError,
  KeyError,
  OverflowError,
  ZeroDivisionError,
  struct.error,
  zlib.error,
)

# EXIF orientation -> what turns the stored image upright.
_UPRIGHT = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}

# Pillow warns per file (corrupt EXIF, odd palettes, large images): thousands
# of lines in a data set of millions. Set once, here: `catch_warnings` around
# every image would race between threads.
warnings.filterwarnings('ignore', module=r'PIL(\.|$)')


class BadImage(Exception):
  """An image that cannot be decoded; the message is the reason."""


def decode(
  image: bytes | np.ndarray, min_size: tuple[int, int] | None = None
) -> Image.Image:
  """Decodes an image to upright RGB.

  Args:
    image: the bytes of a file, or pixels: uint8 (H, W), (H, W, 1), (H, W, 3)
      or (H, W, 4).
    min_size: (width, height) in pixels; a larger JPEG may come back smaller,
      by 1/2, 1/4 or 1/8, but not below (scaled in the DCT: up to twice as
      fast). None: full size.

  Returns:
    An RGB image.

  Raises:
    BadImage: the image is empty, truncated, not an image, or too large.
  """
  return pixels(open_image(image), min_size)


def open_image(image: bytes | np.ndarray) -> Image.Image:
  """Reads the header only: format and size are known, no pixel is decoded.

  Args:
    image: as for `decode`.

  Returns:
    An image for `is_jpeg`, `full_size`, `orientation` and `pixels`.

  Raises:
    BadImage: not an image, or larger than Pillow's limit (179 megapixels).
  """
  if isinstance(image, np.ndarray):
    return _from_array(image)
  if not image:
    raise BadImage('empty file')
  with _broken_is_bad_image():
    opened = Image.open(io.BytesIO(image), formats=FORMATS)
  if is_jpeg(opened):
    # All of it is in memory: decoding in one piece saves 2% over 64 kB pieces.
    opened.decodermaxblock = max(opened.decodermaxblock, len(image))
  return opened


def is_jpeg(opened: Image.Image) -> bool:
  """Whether it is a JPEG: what `min_size` and 'fast' decoding are for."""
  return opened.format in ('JPEG', 'MPO')  # MPO: several JPEGs, from phones


def full_size(opened: Image.Image) -> tuple[int, int]:
  """(width, height) of an upright JPEG at full scale, before it is decoded."""
  width, height = opened.size
  return (height, width) if orientation(opened) >= 5 else (width, height)


def orientation(opened: Image.Image) -> int:
  """EXIF orientation, 1 to 8; 1 when absent or unreadable."""
  try:
    value = opened.getexif().get(ExifTags.Base.Orientation)
    return value if value in _UPRIGHT else 1
  except _BROKEN:
    # ImageNet has a file with corrupt EXIF and good pixels.
    return 1


def pixels(
  opened: Image.Image, min_size: tuple[int, int] | None = None
) -> Image.Image:
  """Decodes what `open_image` opened; arguments and errors as for `decode`."""
  with _broken_is_bad_image():
    if min_size is not None:
      turned = orientation(opened) >= 5
      opened.draft(None, min_size[::-1] if turned else min_size)
    opened.load()
    # Asked again after loading: Pillow has by then turned a TIFF itself and
    # removed its tag.
    turn = orientation(opened)
    rgb = _to_rgb(opened)
    return rgb.transpose(_UPRIGHT[turn]) if turn > 1 else rgb


def stored(image: bytes) -> tuple[str, np.ndarray]:
  """Pillow's mode of a file, and its numbers as they are: of 'P' the indices.

  Raises:
    BadImage: as of `decode`.
  """
  opened = open_image(image)
  with _broken_is_bad_image():
    return opened.mode, np.asarray(opened)


@contextlib.contextmanager
def _broken_is_bad_image() -> Iterator[None]:
  try:
    yield
  except UnidentifiedImageError:
    # Pillow's own message holds a memory address.
    raise BadImage('not an image of a known format') from None
  except Image.DecompressionBombError:
    raise BadImage('too many pixels (decompression bomb?)') from None
  except _BROKEN as error:
    reason = ' '.join(str(error).split()) or type(error).__name__
    raise BadImage(reason) from error


def _to_rgb(image: Image.Image) -> Image.Image:
  if image.mode.startswith(('I', 'F')):
    return _to_8_bits(image).convert('RGB')
  if image.has_transparency_data:
    white = Image.new('RGBA', image.size, 'white')
    white.alpha_composite(image.convert('RGBA'))
    return white.convert('RGB')
  return image if image.mode == 'RGB' else image.convert('RGB')


def _to_8_bits(image: Image.Image) -> Image.Image:
  """Scales 16-bit, 32-bit and float grey to 8 bits."""
  values = np.asarray(image).astype(np.float64)  # (H, W)
  if image.mode.startswith('I;16'):
    low, high = 0.0, 65535.0
  else:
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = values.min(), values.max()
    for usual in (1.0, 255.0, 65535.0)[image.mode != 'F' :]:
      if low >= 0 and high <= usual:
        low, high = 0.0, usual
        break
  scaled = (values - low) * (255.0 / max(high - low, 1e-12))
  return Image.fromarray(np.rint(scaled).astype(np.uint8))


def _from_array(array: np.ndarray) -> Image.Image:
  if array.dtype != np.uint8 or array.size == 0:
    raise BadImage(f'array of {array.dtype} {array.shape}, expected uint8')
  if array.ndim == 3 and array.shape[2] == 1:
    array = array[:, :, 0]
  if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
    raise BadImage(f'array of shape {array.shape}, expected (H, W, 3)')
  return Image.fromarray(array)
