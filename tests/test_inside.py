import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ijepa_jax import sharding, train_step
from ijepa_jax.data import scenes
from ijepa_jax.evaluation import features, health, online, views
from ijepa_jax.metrics.health import HealthWatch


def lidar_as_printed(x):
  """Thilak et al. 2023, equations 1 to 3, sample by sample."""
  n, q, width = x.shape
  means = [np.mean(image, axis=0) for image in x]
  mean = np.mean(means, axis=0)
  between = sum(np.outer(m - mean, m - mean) for m in means) / n
  within = 1e-4 * np.eye(width)
  for image, image_mean in zip(x, means, strict=True):
    for view in image:
      within += np.outer(view - image_mean, view - image_mean) / (n * q)
  values, vectors = np.linalg.eigh(within)
  root = vectors @ np.diag(values**-0.5) @ vectors.T
  eigenvalues = np.abs(np.linalg.eigvalsh(root @ between @ root))
  p = eigenvalues / eigenvalues.sum() + 1e-7
  return np.exp(-np.sum(p * np.log(p)))


def noise(shape, scale=1.0):
  return scale * np.random.default_rng(0).normal(size=shape)


class TestLidar:
  @pytest.mark.parametrize('shape', [(40, 5, 8), (6, 3, 20)])
  def test_equals_the_formula(self, shape):
    x = noise((shape[0], 1, shape[2])) + noise(shape, 0.5)
    assert health.lidar(x) == pytest.approx(lidar_as_printed(x), rel=1e-6)

  def test_images_that_differ_in_one_direction(self):
    along = np.zeros(16)
    along[3] = 1
    x = noise((50, 1, 1)) * along + noise((50, 8, 16), 1e-6)
    assert health.lidar(x) == pytest.approx(1, abs=0.01)

  def test_images_that_differ_in_all_directions(self):
    x = np.tile(np.eye(16), (8, 1))[:, None] + noise((128, 8, 16), 1e-6)
    # The mean takes one of 16 away.
    assert health.lidar(x) == pytest.approx(15, abs=0.1)

  def test_the_same_features_for_all_images(self):
    assert health.lidar(np.ones((50, 8, 16))) == 0

  def test_what_varies_with_the_view_alone_does_not_count(self):
    x = noise((200, 50, 16))
    x[..., 0] = 100 * noise((200, 1))
    assert health.rankme(x[:, 0, 1:]) > 14
    assert health.lidar(x) < 1.1


@pytest.fixture(scope='module')
def target():
  return jax.jit(
    functools.partial(train_step.init_state, tiny.config())
  )().target


@pytest.fixture(scope='module')
def extract():
  config = tiny.config()
  mesh = sharding.make_mesh(config)
  learner = train_step.Learner(config, sharding.constrain(mesh))
  return features.FeatureExtractor(learner, mesh, 32)


@pytest.fixture(scope='module')
def pictures():
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (40, 24, 24, 3)).astype(np.uint8)
  return online.LabelledImages(pixels, {}, 40)


class TestInside:
  def test_shapes_and_the_last_block(self, extract, target, pictures):
    inside = extract.inside(target, pictures)
    assert inside.views.shape == (40, 10, 96)
    assert inside.blocks.shape == (40, 4, 96)
    assert inside.entropy.shape == (40, 4)
    np.testing.assert_allclose(
      inside.blocks[:, -1], extract(target, pictures), rtol=0, atol=1e-5
    )
    assert np.all((inside.entropy > 0.5) & (inside.entropy < 1))
    assert set(inside.health()) == {'health/lidar'} | {
      f'{figure}/0{block}'
      for figure in ('rankme_block', 'attention_entropy')
      for block in range(4)
    }

  def test_some_black_images_are_told_before_training(self, extract, target):
    source = scenes.ScenesSource('test', 24)
    drawn = np.stack([source[number]['image'] for number in range(40)])
    broken = drawn.copy()
    broken[:8] = 0
    for pixels, warned in ((drawn, False), (broken, True)):
      inside = extract.inside(target, online.LabelledImages(pixels, {}, 40))
      watch = HealthWatch(feature_width=96, warmup_steps=0)
      said = watch.check(0, inside.health())
      assert any('LiDAR' in line for line in said) == warned, said

  def test_a_part_of_the_images_at_a_time_is_the_same(
    self, extract, target, pictures, monkeypatch
  ):
    monkeypatch.setattr(features, '_MAX_WEIGHTS', 1)
    few = extract._blocks(target, jnp.asarray(pictures.images[:32]))
    whole = extract.inside(target, pictures)
    np.testing.assert_allclose(few[..., 0], whole.entropy[:32], atol=1e-5)
    np.testing.assert_allclose(few[..., 1:], whole.blocks[:32], atol=1e-5)

  def test_of_many_images_the_first_ones(
    self, extract, target, pictures, monkeypatch
  ):
    whole = extract.inside(target, pictures)
    monkeypatch.setattr(features, '_MAX_IMAGES', 12)
    for few, all_of_them in zip(
      extract.inside(target, pictures), whole, strict=True
    ):
      assert len(few) == 12
      np.testing.assert_allclose(few, all_of_them[:12], rtol=0, atol=1e-5)

  def test_entropy_of_equal_weights_is_1(self, extract, target, pictures):
    equal = jax.tree.map(lambda x: x, target)
    equal['trunk']['blocks']['qkv']['kernel'] *= 0
    inside = extract.inside(equal, pictures)
    np.testing.assert_allclose(inside.entropy, 1, atol=1e-5)

  def test_features_that_are_not_finite_give_nan(
    self, extract, target, pictures
  ):
    broken = target | {'pos_embed': target['pos_embed'] * jnp.nan}
    figures = extract.inside(broken, pictures).health()
    assert np.isnan(list(figures.values())).all()


class TestRandomCrops:
  def crops(self, image):
    images = jnp.tile(image, (64, 1, 1, 1))
    return np.asarray(views.random_crops(images, jax.random.key(0)))

  def test_area_and_place(self):
    # The pixels tell where they were: x in one channel, y in the other.
    line = np.linspace(0, 1, 32, dtype=np.float32)
    x, y = np.meshgrid(line, line)
    crops = self.crops(np.stack([x, y, x], axis=2))
    width, height = (np.ptp(crops[..., i], axis=(1, 2)) for i in (0, 1))
    area = width * height
    assert area.min() > 0.2
    assert area.max() > 0.8
    assert len(np.unique(area)) == 64
    # A corner each: some to the left, some to the right.
    assert np.ptp(crops[:, 0, 0, 0]) > 0.2

  def test_nothing_from_outside(self):
    crops = self.crops(np.ones((16, 16, 3), np.float32))
    np.testing.assert_allclose(crops, 1, atol=1e-5)
