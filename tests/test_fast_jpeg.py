"""'fast' decoding gives Pillow's crops, and its verdict on odd files."""

import concurrent.futures
import io

import numpy as np
import pytest
import tiny_config
from PIL import ExifTags, Image

from ijepa_jax import errors
from ijepa_jax.config import validate
from ijepa_jax.data import decode, fast_jpeg, transforms

_MODES = ('fast', 'fastest')


def _photo(width=300, height=200) -> Image.Image:
  """Smooth, colourful, and different in each corner."""
  x = np.linspace(0, 5, width)[None]
  y = np.linspace(0, 3, height)[:, None]
  waves = [np.sin(x + y), np.cos(2 * x - y), np.sin(x * y)]
  return Image.fromarray((np.stack(waves, -1) * 100 + 127).astype(np.uint8))


def _encode(image: Image.Image, fmt='JPEG', **options) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, fmt, **({'quality': 95} | options))
  return buffer.getvalue()


def _apply(data, mode, seed=0, side=64, **options) -> np.ndarray:
  transform = transforms.TrainTransform(side, **options)
  rng = np.random.default_rng(seed)
  pixels = transforms.apply(data, transform, rng, mode)
  assert pixels.dtype == np.uint8
  assert pixels.shape == (side, side, 3)
  return pixels.astype(int)


@pytest.fixture
def no_pillow_fallback(monkeypatch):
  """Fails where 'fast' leaves a file to Pillow."""

  def pixels(opened, min_size=None):
    raise AssertionError('left to Pillow')

  def use(call, *args, **options):
    with monkeypatch.context() as patch:
      patch.setattr(decode, 'pixels', pixels)
      return call(*args, **options)

  return use


@pytest.mark.parametrize(
  'options',
  [
    {'subsampling': 0},
    {'subsampling': 1},
    {'subsampling': 2},
    {'progressive': True},
    {'keep_rgb': True},
    {'restart_marker_blocks': 3},
  ],
  ids=str,
)
def test_within_one_level_of_pillow(options, no_pillow_fallback):
  data = _encode(_photo(), **options)
  for seed in range(5):
    for side in 101, 250:
      exact = _apply(data, 'exact', seed, side)
      fast = no_pillow_fallback(_apply, data, 'fast', seed, side)
      assert np.abs(fast - exact).max() <= 1


def test_grey_is_within_one_level(no_pillow_fallback):
  data = _encode(_photo().convert('L'))
  fast = no_pillow_fallback(_apply, data, 'fast', side=101)
  assert np.abs(fast - _apply(data, 'exact', side=101)).max() <= 1


@pytest.mark.parametrize('orientation', range(9))
def test_orientation_is_applied(orientation, no_pillow_fallback):
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = orientation
  data = _encode(_photo(), exif=exif)
  for seed in range(3):
    fast = no_pillow_fallback(_apply, data, 'fast', seed, side=101)
    assert np.abs(fast - _apply(data, 'exact', seed, 101)).max() <= 1
  for mode in _MODES:
    difference = _apply(data, mode, side=30) - _apply(data, 'exact', side=30)
    assert np.abs(difference).mean() < 1.5


@pytest.mark.parametrize('mode', _MODES)
def test_large_image_shows_the_same_part(mode):
  data = _encode(_photo(1001, 755))
  for seed in range(20):
    difference = _apply(data, mode, seed, 32) - _apply(data, 'exact', seed, 32)
    assert np.abs(difference).mean() < 1.5


@pytest.mark.parametrize(
  ('mode', 'width', 'expected'),
  [
    ('fast', 63, 400),
    ('fast', 64, 200),
    ('fast', 127, 200),
    ('fast', 128, 100),
    ('fast', 400, 50),
    ('fastest', 38, 400),
    ('fastest', 39, 200),
  ],
)
def test_reduced_size_keeps_the_pixels_that_the_mode_promises(
  mode, width, expected
):
  data = _encode(_photo(400, 400))
  opened = decode.open_image(data)
  decoded = fast_jpeg.decode_for(data, opened, (0, 0, width, 400), 32, mode)
  assert decoded.pixels.shape == (expected, expected, 3)


def test_options_make_the_same_draws():
  data = _encode(_photo())
  options = {'flip': True, 'color_jitter': 0.5, 'blur': True}
  for seed in range(10):
    difference = _apply(data, 'exact', seed, **options) - _apply(
      data, 'fast', seed, **options
    )
    assert np.abs(difference).mean() < 2


def _other_files() -> dict[str, bytes | np.ndarray]:
  photo = _photo()
  files = {
    'CMYK': _encode(photo.convert('CMYK')),
    'array': np.asarray(photo),
    'transparent': _encode(photo.convert('RGBA'), 'PNG'),
  }
  for fmt in decode.FORMATS[1:]:
    files[fmt] = _encode(photo, fmt)
  return files


@pytest.mark.parametrize('mode', _MODES)
def test_what_is_left_to_pillow_equals_exact(mode):
  for name, data in _other_files().items():
    exact = _apply(data, 'exact', side=20)
    np.testing.assert_array_equal(_apply(data, mode, side=20), exact, name)


@pytest.mark.parametrize('size', [(1, 1), (1, 500), (3000, 2), (8, 8)])
@pytest.mark.parametrize('mode', _MODES)
def test_extreme_size(size, mode):
  data = _encode(_photo(*size))
  difference = _apply(data, mode) - _apply(data, 'exact')
  assert np.abs(difference).max() <= 1


def test_truncated_is_bad_wherever_it_is_cut():
  data = _encode(_photo())
  for end in range(1, len(data), len(data) // 60):
    for mode in _MODES:
      with pytest.raises(decode.BadImage):
        _apply(data[:end], mode)


def test_broken_image_leaves_the_draws_as_exact_does():
  broken = _encode(_photo())[:2000]
  for mode in 'exact', 'fast':
    rng = np.random.default_rng(3)
    with pytest.raises(decode.BadImage):
      transforms.apply(broken, transforms.TrainTransform(8), rng, mode)
    assert rng.random() == np.random.default_rng(3).random()


@pytest.mark.filterwarnings('ignore::UserWarning:PIL')
def test_damaged_files_get_pillows_verdict():
  """Bytes flipped in headers and in pixels: never more, never less is read."""
  rng = np.random.default_rng(0)
  files = [
    _encode(_photo(120, 80), **options)
    for options in (
      {'subsampling': 0},
      {'subsampling': 2},
      {'progressive': True},
    )
  ]
  verdicts = []
  for trial in range(600):
    data = bytearray(files[trial % len(files)])
    end = len(data) if trial % 2 else 700
    for _ in range(rng.integers(1, 4)):
      data[rng.integers(2, end)] = rng.integers(256)
    results = []
    for mode in 'exact', 'fast':
      try:
        results.append(_apply(bytes(data), mode, side=70))
      except decode.BadImage:
        results.append(None)
    exact, fast = results
    assert (exact is None) == (fast is None)
    if exact is not None:
      assert np.abs(exact - fast).max() <= 1
    verdicts.append(exact is None)
  assert 30 < sum(verdicts) < 570


def test_threads_do_not_disturb_each_other():
  files = [_encode(_photo(300 + n, 200)) for n in range(8)]
  expected = [_apply(data, 'fast') for data in files]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for _ in range(5):
      found = pool.map(lambda data: _apply(data, 'fast'), files)
      for pixels, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(pixels, wanted)


def test_every_processor_gives_the_same_pixels(monkeypatch):
  library = fast_jpeg.cykooz_resizer
  data = _encode(_photo())
  expected = _apply(data, 'fast')

  def plain() -> object:
    resizer = resizers()
    resizer.cpu_extensions = library.CpuExtensions.none
    return resizer

  resizers = library.Resizer
  monkeypatch.setattr(library, 'Resizer', plain)
  np.testing.assert_array_equal(_apply(data, 'fast'), expected)


@pytest.mark.parametrize('mode', _MODES)
def test_absent_library_is_one_line_with_the_command(mode, monkeypatch):
  monkeypatch.setattr(fast_jpeg, '_MISSING', "No module named 'simplejpeg'")
  config = tiny_config.get_config()
  validate.validate(config)
  config.data.decode = mode
  with pytest.raises(errors.UserError) as info:
    validate.validate(config)
  assert info.value.exit_code == 2
  assert len(str(info.value).splitlines()) == 1
  assert f'data.decode={mode}' in str(info.value)
  assert '`pip install simplejpeg cykooz-resizer`' in str(info.value)
