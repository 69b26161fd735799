"""Every odd image is decoded right, every broken one is a BadImage."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from ijepa_jax.data import decode

_FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'TIFF', 'GIF')
_SEED = 0


def _encode(image: Image.Image, fmt: str, **options) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, fmt, **options)
  return buffer.getvalue()


def _pixels(data, *args) -> np.ndarray:
  image = decode.decode(data, *args)
  assert image.mode == 'RGB'
  return np.asarray(image)


def _quadrants(width=48, height=32) -> Image.Image:
  """Four colours, so that every way to turn it looks different."""
  array = np.zeros((height, width, 3), np.uint8)
  array[: height // 2, : width // 2] = (200, 30, 30)
  array[: height // 2, width // 2 :] = (30, 200, 30)
  array[height // 2 :, : width // 2] = (30, 30, 200)
  array[height // 2 :, width // 2 :] = (220, 220, 60)
  return Image.fromarray(array)


def _png_of_size(width: int, height: int) -> bytes:
  chunks = b'\x89PNG\r\n\x1a\n'
  size = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  for name, content in ((b'IHDR', size), (b'IDAT', zlib.compress(b''))):
    checksum = struct.pack('>I', zlib.crc32(name + content))
    chunks += struct.pack('>I', len(content)) + name + content + checksum
  return chunks


@pytest.mark.parametrize('fmt', _FORMATS)
def test_format_keeps_colours(fmt):
  pixels = _pixels(_encode(_quadrants(), fmt))
  assert np.abs(pixels - np.asarray(_quadrants(), np.float32)).mean() < 12


@pytest.mark.parametrize('mode', ['L', '1', 'CMYK', 'YCbCr'])
def test_mode_becomes_rgb(mode):
  image = Image.new('RGB', (8, 6), 'white').convert(mode)
  fmt = 'PNG' if mode == '1' else 'JPEG'
  assert _pixels(_encode(image, fmt)).min() > 250


def test_cmyk_jpeg_is_not_inverted():
  image = Image.new('CMYK', (16, 16), (0, 255, 255, 0))  # red
  np.testing.assert_allclose(
    _pixels(_encode(image, 'JPEG'))[8, 8], (255, 0, 0), atol=8
  )


@pytest.mark.parametrize('mode', ['RGBA', 'LA'])
def test_transparency_becomes_white(mode):
  image = Image.new(mode, (4, 4), 0)
  assert _pixels(_encode(image, 'PNG')).min() == 255


def test_half_transparent_black_becomes_grey():
  image = Image.new('RGBA', (4, 4), (0, 0, 0, 128))
  np.testing.assert_allclose(_pixels(_encode(image, 'PNG')), 127, atol=1)


def test_transparent_palette_entry_becomes_white():
  image = Image.new('P', (4, 4), 1)
  image.putpalette([255, 0, 0, 0, 0, 255])
  image.putpixel((0, 0), 0)
  pixels = _pixels(_encode(image, 'PNG', transparency=b'\xff\x00'))
  assert pixels[0, 0].tolist() == [255, 0, 0]
  assert pixels[3, 3].tolist() == [255, 255, 255]


def test_transparent_colour_of_rgb_png_becomes_white():
  image = Image.new('RGB', (4, 4), (10, 20, 30))
  data = _encode(image, 'PNG', transparency=(10, 20, 30))
  assert _pixels(data).min() == 255


@pytest.mark.parametrize('fmt', ['PNG', 'TIFF'])
def test_16_bit_grey_is_scaled_and_not_clipped(fmt):
  array = np.array([[0, 256, 32768, 65535]], np.uint16)
  grey = _pixels(_encode(Image.fromarray(array), fmt))[0, :, 0]
  assert grey.tolist() == [0, 1, 128, 255]


def test_big_endian_16_bit_tiff():
  image = Image.frombytes('I;16B', (2, 1), b'\x80\x00\xff\xff')
  assert _pixels(_encode(image, 'TIFF'))[0, :, 0].tolist() == [128, 255]


@pytest.mark.parametrize(
  ('values', 'expected'),
  [
    ([0.0, 0.5, 1.0], [0, 128, 255]),
    ([0.0, 128.0, 255.0], [0, 128, 255]),
    ([0.0, 65535.0, 32768.0], [0, 255, 128]),
    ([-1.0, 0.0, 1.0], [0, 128, 255]),
    ([float('nan'), 1.0, float('inf')], [0, 255, 0]),
    ([7e6, 7e6, 7e6], [0, 0, 0]),
  ],
)
def test_float_tiff_is_scaled_by_its_range(values, expected):
  image = Image.fromarray(np.array([values], np.float32))
  assert _pixels(_encode(image, 'TIFF'))[0, :, 0].tolist() == expected


def test_32_bit_integer_tiff_is_scaled_by_its_range():
  image = Image.fromarray(np.array([[0, 255, 128]], np.int32))
  assert _pixels(_encode(image, 'TIFF'))[0, :, 0].tolist() == [0, 255, 128]


# How a picture must be stored so that a tag turns it upright: the inverses.
_STORED = {
  1: None,
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_90,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('fmt', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('min_size', [None, (40, 20)])
def test_orientation_is_applied(fmt, orientation, min_size):
  upright = _quadrants()
  turn = _STORED[orientation]
  stored = upright if turn is None else upright.transpose(turn)
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = orientation
  data = _encode(stored, fmt, exif=exif)
  opened = decode.open_image(data)
  assert decode.is_jpeg(opened) == (fmt == 'JPEG')
  if fmt == 'JPEG':
    assert decode.full_size(opened) == upright.size
  pixels = np.asarray(decode.pixels(opened, min_size))
  difference = pixels - np.asarray(upright, np.float32)
  assert np.abs(difference).mean() < 12


@pytest.mark.parametrize('exif', [b'Exif\0\0MM', b'Exif\0\0' + b'\xff' * 40])
def test_corrupt_exif_is_no_orientation(exif):
  assert _pixels(_encode(_quadrants(), 'JPEG', exif=exif)).shape == (32, 48, 3)


@pytest.mark.parametrize('fmt', ['GIF', 'WEBP', 'PNG', 'TIFF'])
def test_first_frame_of_an_animation(fmt):
  red, blue = Image.new('RGB', (8, 8), 'red'), Image.new('RGB', (8, 8), 'blue')
  data = _encode(red, fmt, save_all=True, append_images=[blue])
  np.testing.assert_allclose(_pixels(data)[4, 4], (255, 0, 0), atol=4)


@pytest.mark.parametrize('size', [(1, 1), (20_000, 3), (1, 5000)])
def test_extreme_size(size):
  data = _encode(Image.new('RGB', size, 'red'), 'JPEG')
  assert decode.decode(data).size == size


@pytest.mark.parametrize('shape', [(5, 4), (5, 4, 1), (5, 4, 3), (5, 4, 4)])
def test_array_becomes_rgb(shape):
  array = np.full(shape, 255, np.uint8)
  assert (_pixels(array) == 255).all()
  assert _pixels(array).shape == (5, 4, 3)


@pytest.mark.parametrize(
  'array',
  [
    np.zeros((4, 4, 3), np.float32),
    np.zeros((4, 4, 2), np.uint8),
    np.zeros((0, 4, 3), np.uint8),
  ],
)
def test_unusable_array_is_bad(array):
  with pytest.raises(decode.BadImage):
    decode.decode(array)


@pytest.mark.parametrize('fmt', _FORMATS)
def test_truncated_is_bad(fmt):
  rng = np.random.default_rng(_SEED)
  noise = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
  data = _encode(noise, fmt)
  with pytest.raises(decode.BadImage):
    decode.decode(data[: len(data) // 2])


@pytest.mark.parametrize(
  ('data', 'reason'),
  [
    (b'', 'empty file'),
    (b'<html>404</html>', 'not an image of a known format'),
    (b'%!PS-Adobe-3.0 EPSF-3.0\n', 'not an image of a known format'),
    (_png_of_size(30_000, 30_000), 'too many pixels'),
  ],
)
def test_reason_of_a_bad_image(data, reason):
  with pytest.raises(decode.BadImage, match=reason):
    decode.decode(data)


@pytest.mark.filterwarnings('ignore::UserWarning:PIL')
def test_damaged_files_raise_nothing_else():
  rng = np.random.default_rng(_SEED)
  files = [_encode(_quadrants(), fmt) for fmt in _FORMATS]
  bad = 0
  for trial in range(600):
    data = bytearray(files[trial % len(files)])
    for _ in range(rng.integers(1, 8)):
      data[rng.integers(min(len(data), 300))] = rng.integers(256)
    try:
      assert decode.decode(bytes(data), (5, 5)).mode == 'RGB'
    except decode.BadImage:
      bad += 1
  assert 0 < bad < 600


def test_large_jpeg_shrinks_but_not_below_min_size():
  data = _encode(_quadrants(800, 600), 'JPEG')
  assert decode.decode(data, (200, 140)).size == (200, 150)
  assert decode.decode(data, (201, 140)).size == (400, 300)
  assert decode.decode(data).size == (800, 600)


def test_odd_images_print_nothing(tmp_path):
  palette = Image.new('P', (4, 4), 1)
  palette.putpalette([255, 0, 0, 0, 0, 255])
  files = [
    _encode(palette, 'PNG', transparency=b'\xff\x00'),
    _encode(_quadrants(), 'JPEG', exif=b'Exif\0\0MM\0*\0\0\0\x08\xff\xff'),
    _encode(Image.new('L', (13_000, 7_000)), 'PNG'),  # over the warning limit
  ]
  for number, data in enumerate(files):
    (tmp_path / str(number)).write_bytes(data)
  code = (
    'import pathlib, sys\n'
    'from ijepa_jax.data import decode\n'
    'for path in pathlib.Path(sys.argv[1]).iterdir():\n'
    '  decode.decode(path.read_bytes())\n'
  )
  run = subprocess.run(
    [sys.executable, '-c', code, str(tmp_path)],
    capture_output=True,
    text=True,
    check=True,
  )
  assert run.stdout + run.stderr == ''
