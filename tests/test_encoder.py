"""What people downstream call: `ijepa_jax.load_encoder`."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_weights
from flax import nnx
from PIL import Image

import ijepa_jax
from ijepa_jax import encoder, errors, train_step
from ijepa_jax.data import transforms
from ijepa_jax.interop import names, positions


@pytest.fixture(scope='module', params=['timm', 'flax'])
def golden_path(request, tmp_path_factory):
  """The reference's encoder of the golden numbers, on disk."""
  folder = tmp_path_factory.mktemp('golden')
  return small_weights.write(
    small_weights.golden(), folder / 'a', request.param
  )


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  folder = tmp_path_factory.mktemp('small')
  held = small_weights.single(ours=True, crop=0.75)
  return small_weights.write(held, folder / 'a', 'flax')


@pytest.fixture(scope='module')
def small(path):
  return ijepa_jax.load_encoder(str(path))


def noise(height, width, batch=2):
  rng = np.random.default_rng(0)
  return rng.normal(size=(batch, height, width, 3)).astype(np.float32)


def test_features_are_those_of_the_reference(golden_path):
  micro = small_weights.golden_arrays('model_micro')
  rng = np.random.default_rng(11_000)  # golden/README.md
  pixels = rng.integers(0, 256, (4, 3, 48, 48), np.uint8)
  assert zlib.crc32(pixels) == micro['images_crc32'], 'numpy draws others'
  images = (pixels.transpose(0, 2, 3, 1).astype(np.float32) - 127.5) / 64
  features = ijepa_jax.load_encoder(str(golden_path))(images)
  np.testing.assert_allclose(features, micro['target_full'], atol=1e-5)


def test_which_is_the_encoder_of_a_checkpoint(tmp_path):
  held = small_weights.full()
  path = small_weights.write(held, tmp_path / 'a', 'orbax')
  for which in ('target', 'context'):
    loaded = ijepa_jax.load_encoder(str(path), which)
    flat = names.flatten(loaded.params)
    small_weights.assert_same(flat, held.encoder(which))


def test_a_path_may_be_a_path_object(path):
  assert ijepa_jax.load_encoder(path).architecture.image_size == 12


def test_the_last_layer_is_the_call(small):
  images = noise(12, 12)
  last, first, also_last = small.layers(images, [-1, 0, 2])
  np.testing.assert_allclose(last, small(images), atol=1e-6)
  np.testing.assert_array_equal(last, also_last)
  assert np.abs(first - last).max() > 0.01
  assert first.shape == (2, 9, 44)


def test_attention_is_by_head_and_sums_to_one(small):
  images = noise(12, 12)
  last, first, also_last = small.attention(images, [-1, 0, 2])
  assert first.shape == (2, 2, 9, 9)
  np.testing.assert_allclose(first.sum(-1), 1, atol=1e-6)
  np.testing.assert_array_equal(last, also_last)
  assert np.abs(first - last).max() > 1e-3


def test_jit_computes_the_same(small):
  images = noise(12, 12)
  jitted = jax.jit(lambda encoder, x: encoder(x))(small, images)
  np.testing.assert_allclose(jitted, small(images), atol=1e-6)


def test_every_parameter_but_the_positions_has_a_gradient(small):
  def loss(encoder):
    return (encoder(noise(12, 12)) ** 3).sum()

  gradients = jax.jit(jax.grad(loss))(small)
  assert isinstance(gradients, encoder.Encoder)
  flat = names.flatten(gradients.params)
  still = {path for path, x in flat.items() if not np.abs(x).max() > 0}
  assert still == {'pos_embed'}


def test_bfloat16_is_near_and_returns_float32(path, small):
  half = ijepa_jax.load_encoder(str(path), dtype=jnp.bfloat16)
  images = noise(12, 12)
  features = half(images)
  assert features.dtype == jnp.float32
  difference = np.abs(features - small(images)).max()
  assert 1e-5 < difference < 0.1


@pytest.mark.parametrize(('height', 'width'), [(20, 20), (8, 16), (12, 4)])
def test_another_size_interpolates_the_positions(height, width, small):
  images = noise(height, width)
  table = positions.interpolate(
    np.asarray(small.params['pos_embed']), (3, 3), (height // 4, width // 4)
  )
  module = small.architecture.encoder()
  graph, _ = nnx.split(module)
  same = nnx.merge(graph, small.params | {'pos_embed': table})
  features = small(images)
  assert features.shape == (2, height * width // 16, 44)
  np.testing.assert_allclose(features, same(images), atol=2e-6)


def test_image_size_at_loading_is_the_same_as_at_the_call(path, small):
  other = ijepa_jax.load_encoder(str(path), image_size=20)
  assert other.architecture.image_size == 20
  images = noise(20, 20)
  np.testing.assert_allclose(other(images), small(images), atol=2e-6)
  assert other.preprocess(np.zeros((30, 30, 3), np.uint8)).shape[1] == 20


def test_preprocess_is_the_transform_of_the_evaluation(small):
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (40, 30, 3), np.uint8)
  square = transforms.EvalTransform(12, crop=0.75)(Image.fromarray(pixels))
  expected = train_step.normalise(square[None])
  np.testing.assert_array_equal(small.preprocess(pixels), expected)
  one = small.preprocess(Image.fromarray(pixels))
  np.testing.assert_array_equal(one, expected)
  assert one.dtype == np.float32
  assert one.shape == (1, 12, 12, 3)


def test_preprocess_normalises_as_training_does():
  pixels = np.random.default_rng(0).integers(0, 256, (1, 2, 2, 3), np.uint8)
  on_host = train_step.normalise(pixels)
  assert isinstance(on_host, np.ndarray)
  in_step = jax.jit(train_step.normalise)(pixels)
  np.testing.assert_allclose(on_host, in_step, atol=1e-6)


def test_preprocess_takes_images_of_any_size_and_mode(small):
  images = [
    Image.new('L', (20, 30)),
    Image.new('RGBA', (30, 20)),
    np.zeros((13, 50, 3), np.uint8),
  ]
  assert small.preprocess(images).shape == (3, 12, 12, 3)
  assert small.preprocess(np.zeros((5, 9, 9, 3), np.uint8)).shape[0] == 5


@pytest.mark.parametrize(
  'image', [np.zeros((9, 9, 3), np.float32), np.zeros((9, 9, 7), np.uint8)]
)
def test_preprocess_refuses_what_is_no_image(image, small):
  with pytest.raises(errors.UserError, match='preprocess'):
    small.preprocess(image)


@pytest.mark.parametrize(
  ('images', 'message'),
  [
    (np.zeros((12, 12, 3), np.float32), r'expected \(B, H, W, 3\)'),
    (np.zeros((1, 3, 12, 12), np.float32), r'expected \(B, H, W, 3\)'),
    (np.zeros((1, 12, 12, 3), np.uint8), 'see preprocess'),
    (np.zeros((1, 12, 13, 3), np.float32), 'patch size 4'),
    (np.zeros((1, 0, 12, 3), np.float32), 'patch size 4'),
  ],
)
def test_other_shapes_are_refused(images, message, small):
  with pytest.raises(ValueError, match=message):
    small(images)


@pytest.mark.parametrize('number', [3, -4])
def test_a_layer_that_is_not_there_is_refused(number, small):
  with pytest.raises(ValueError, match=f'layer {number}: expected -3 to 2'):
    small.layers(noise(12, 12), [number])
  with pytest.raises(ValueError, match=f'layer {number}: expected -3 to 2'):
    small.attention(noise(12, 12), [number])


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'which': 'teacher'}, "'target' or 'context'"),
    ({'image_size': 13}, 'image_size=13'),
    ({'heads': 4}, 'heads=4'),
  ],
)
def test_options_that_cannot_be_are_one_line(options, message, path):
  with pytest.raises(errors.UserError, match=message) as caught:
    ijepa_jax.load_encoder(str(path), **options)
  assert '\n' not in str(caught.value)


def test_nothing_there_is_one_line(tmp_path):
  with pytest.raises(errors.UserError, match='does not exist'):
    ijepa_jax.load_encoder(str(tmp_path / 'nothing'))


@pytest.mark.parametrize('images', [[], ['photo.jpg'], [None]])
def test_preprocess_says_what_it_expects(small, images):
  with pytest.raises(errors.UserError, match='preprocess'):
    small.preprocess(images)


def test_a_second_call_compiles_nothing(small):
  images = small.preprocess(np.zeros((9, 9, 3), np.uint8))
  small(images)
  before = encoder._encode._cache_size()
  small(images)
  assert encoder._encode._cache_size() == before
