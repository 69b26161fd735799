"""Crops as torchvision makes them, options, and broken records replaced."""

import io

import numpy as np
import pytest
from PIL import Image

from ijepa_jax import errors
from ijepa_jax.data import decode, transforms

_SEED = 0


def _rng(seed=_SEED) -> np.random.Generator:
  return np.random.default_rng(seed)


def _photo(width=64, height=48) -> Image.Image:
  """Smooth and colourful: like a photograph, unlike noise."""
  x = np.linspace(0, 3, width)[None]
  y = np.linspace(0, 2, height)[:, None]
  waves = [np.sin(x + y), np.cos(2 * x - y), np.sin(x * y)]
  return Image.fromarray((np.stack(waves, -1) * 100 + 127).astype(np.uint8))


def _jpeg(image: Image.Image) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, 'JPEG', quality=95)
  return buffer.getvalue()


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (640, 480), (30, 4000)])
def test_box_lies_inside(size):
  transform = transforms.TrainTransform(8)
  rng = _rng()
  for _ in range(200):
    box = transform.box(size, rng)
    assert box.width >= 1
    assert box.height >= 1
    assert 0 <= box.left <= size[0] - box.width
    assert 0 <= box.top <= size[1] - box.height


def test_box_area_is_uniform_and_ratio_log_uniform():
  # In an image much larger than the crops no draw is rejected.
  transform = transforms.TrainTransform(8, crop_scale=(0.1, 0.3))
  rng = _rng()
  boxes = [transform.box((3000, 3000), rng) for _ in range(4000)]
  area = np.array([box.width * box.height / 3000**2 for box in boxes])
  log_ratio = np.log([box.width / box.height for box in boxes])
  for values, low, high in (
    (area, 0.1, 0.3),
    (log_ratio, np.log(3 / 4), np.log(4 / 3)),
  ):
    share = (np.sort(values) - low) / (high - low)
    uniform = np.linspace(0, 1, len(values))
    assert np.abs(share - uniform).max() < 0.035  # Kolmogorov-Smirnov, p 1e-4


def test_box_place_is_uniform():
  transform = transforms.TrainTransform(8, crop_scale=(0.25, 0.25))
  rng = _rng()
  boxes = [transform.box((300, 300), rng) for _ in range(4000)]
  left = [box.left / (300 - box.width) for box in boxes]
  assert abs(np.mean(left) - 0.5) < 0.02
  assert min(left) == 0
  assert max(left) == 1


@pytest.mark.parametrize(
  ('size', 'expected'),
  [
    ((1000, 10), (493, 0, 13, 10)),
    ((10, 1000), (0, 493, 10, 13)),
  ],
)
def test_no_fitting_box_gives_the_central_one(size, expected):
  # 1% of the width has to hold 30% of the area: every draw fails.
  assert transforms.TrainTransform(8).box(size, _rng()) == expected


def test_crop_equals_cropping_then_resizing():
  image = _photo()
  transform = transforms.TrainTransform(16)
  box = transform.box(image.size, _rng())
  edges = (box.left, box.top, box.left + box.width, box.top + box.height)
  expected = image.crop(edges).resize((16, 16), Image.Resampling.BILINEAR)
  assert (transform(image, _rng()) == np.asarray(expected)).all()


def test_apply_decodes_and_transforms():
  data = _jpeg(_photo())
  transform = transforms.TrainTransform(16, flip=True)
  expected = transform(decode.decode(data), _rng())
  result = transforms.apply(data, transform, _rng())
  assert result.dtype == np.uint8
  assert (result == expected).all()


def test_same_seed_same_pixels_other_seed_other_pixels():
  transform = transforms.TrainTransform(
    16, flip=True, color_jitter=0.5, blur=True
  )
  image = _photo()
  assert (transform(image, _rng()) == transform(image, _rng())).all()
  assert (transform(image, _rng(0)) != transform(image, _rng(1))).any()


def test_flip_mirrors_half_of_the_crops():
  transform = transforms.TrainTransform(8, flip=True)
  image = _photo(8, 8)
  rng = _rng()
  pixels = np.asarray(image)
  results = [transform.finish(image, rng) for _ in range(100)]
  mirrored = [(result == pixels[:, ::-1]).all() for result in results]
  same = [(result == pixels).all() for result in results]
  assert 30 < sum(mirrored) < 70
  assert sum(mirrored) + sum(same) == 100


def test_color_jitter_changes_colours_only():
  transform = transforms.TrainTransform(8, color_jitter=1.0)
  image = Image.new('RGB', (8, 8), (200, 100, 50))
  rng = _rng()
  results = [transform.finish(image, rng) for _ in range(100)]
  assert all((result == result[0, 0]).all() for result in results)
  colours = {tuple(result[0, 0]) for result in results}
  assert 50 < len(colours) < 100  # a fifth stays as it was


def test_hue_turns_red_into_green():
  red = Image.new('RGB', (2, 2), (255, 0, 0))
  turned = np.asarray(transforms._shift_hue(red, 1 / 3))
  np.testing.assert_allclose(turned[0, 0], (0, 255, 0), atol=6)


def test_blur_smooths_about_half():
  rng = _rng()
  noise = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
  transform = transforms.TrainTransform(32, blur=True)
  image = Image.fromarray(noise)
  spread = [transform.finish(image, rng).std() for _ in range(100)]
  assert 30 < sum(value < 0.98 * noise.std() for value in spread) < 70


def test_eval_takes_the_central_square():
  array = np.zeros((40, 80, 3), np.uint8)
  array[10:30, 30:50] = 255  # half the shorter side, in the centre
  result = transforms.EvalTransform(10, crop=0.5)(Image.fromarray(array))
  assert (result == 255).all()
  wider = transforms.EvalTransform(10, crop=1.0)(Image.fromarray(array))
  assert wider[0, 0, 0] == 0
  assert wider[5, 5, 0] == 255


def test_eval_of_one_pixel():
  image = Image.new('RGB', (1, 1), 'red')
  result = transforms.EvalTransform(4, crop=0.1)(image)
  assert (result == (255, 0, 0)).all()


class _Source:
  """Ten grey images; the broken ones raise or hold nonsense."""

  name = 'ten'
  epoch_length = 10
  fingerprint = ''

  def __init__(self, broken=(), unreadable=()):
    self.labels = {'label': 10}
    self._broken, self._unreadable = broken, unreadable

  def __len__(self):
    return 10

  def __getitem__(self, index):
    if index in self._unreadable:
      raise OSError('disk error')
    if index in self._broken:
      return {'image': b'nonsense', 'labels': {'label': index}}
    image = np.full((4, 4, 3), index, np.uint8)
    return {'image': image, 'labels': {'label': index}}

  def record_id(self, index):
    return f'file{index}'


def _load(source, index) -> transforms.Loaded:
  return transforms.load(source, index, transforms.TrainTransform(4), _rng())


def test_load_of_a_good_record():
  loaded = _load(_Source(), 3)
  assert (loaded.index, loaded.bad, loaded.labels) == (3, 0, {'label': 3})
  assert (loaded.image == 3).all()


def test_load_takes_the_next_good_record_with_its_label():
  loaded = _load(_Source(broken=[3], unreadable=[4]), 3)
  assert (loaded.index, loaded.bad, loaded.labels) == (5, 2, {'label': 5})
  assert (loaded.image == 5).all()


def test_load_goes_on_at_the_beginning():
  assert _load(_Source(broken=[9]), 9).index == 0


def test_load_gives_up_and_names_the_records():
  with pytest.raises(errors.DataError, match=r'ten .*file7, file8') as info:
    _load(_Source(broken=range(10)), 7)
  assert len(str(info.value).splitlines()) == 1
