"""What pictures of features are computed from."""

import sys

import cases
import jax
import numpy as np
import pytest
from PIL import Image

from ijepa_jax import errors, train_step
from ijepa_jax.data import masks as masks_lib
from ijepa_jax.evaluation import health
from ijepa_jax.interop.weights import Architecture
from ijepa_jax.models import sizes
from ijepa_jax.visualize import (
  attention,
  bank,
  decoder,
  neighbours,
  patches,
  pca,
  prediction,
  spectrum,
  tsne,
)

golden_size = cases.golden_size


@pytest.fixture(scope='module')
def features():
  """(n, N, D) with a few strong directions."""
  rng = np.random.default_rng(0)
  scales = 2.0 ** -np.arange(8)
  return (rng.normal(size=(6, 16, 8)) * scales).astype(np.float32)


class TestPca:
  def test_a_patch_has_one_colour_in_all_images(self, features):
    """Whatever the order of images, and of what is drawn and what is not."""
    fitted = pca.fit_patches(features)
    order = np.array([3, 1, 5, 0, 2, 4])
    again = pca.fit_patches(features[order])
    np.testing.assert_allclose(
      again.project(features[order]), fitted.project(features)[order], atol=1e-5
    )

  def test_components_are_those_of_a_singular_value_decomposition(
    self, features
  ):
    rows = features.reshape(-1, 8).astype(np.float64)
    fitted = pca.fit(rows, 3)
    _, values, axes = np.linalg.svd(rows - rows.mean(0))
    np.testing.assert_allclose(
      np.abs((fitted.axes * axes[:3]).sum(1)), 1, atol=1e-6
    )
    np.testing.assert_allclose(
      fitted.shares, values[:3] ** 2 / (values**2).sum(), rtol=1e-5
    )

  @pytest.mark.parametrize('sign', [1, -1])
  def test_the_middle_is_foreground(self, sign):
    features = np.random.default_rng(1).normal(size=(5, 16, 4)) * 0.1
    features[:, [5, 6, 9, 10], 2] += 3 * sign
    first = pca.fit_patches(features, 1).project(features)[..., 0]
    assert (first[:, [5, 6, 9, 10]] > 0).all()
    assert (np.delete(first, [5, 6, 9, 10], axis=1) < 0).all()

  @pytest.mark.parametrize('length', [1, 16])
  def test_images_without_a_foreground_are_drawn(self, length, tmp_path):
    images = np.zeros((3, 8, 8, 3), np.uint8)
    alike = np.ones((3, length, 8), np.float32)
    pca.draw_pca(tmp_path / 'p.png', images[:2], alike[:2], alike[2:])
    assert (tmp_path / 'p.png').stat().st_size > 0

  def test_origins_of_variance(self):
    rng = np.random.default_rng(2)
    image, place = rng.normal(size=(200, 1, 4)), rng.normal(size=(1, 300, 4))
    for features, expected in (
      (image + 0 * place, (1, 0)),
      (place + 0 * image, (0, 1)),
      (rng.normal(size=(200, 300, 4)), (1 / 300, 1 / 200)),
    ):
      assert pca.origins(features) == pytest.approx(expected, abs=1e-3)


class TestNeighbours:
  def test_the_nearest_of_a_patch_in_the_bank_is_itself(self, features):
    rows = features.reshape(-1, 8)
    assert neighbours.nearest(rows, rows)[:, 0].tolist() == list(range(96))

  @pytest.mark.parametrize('count', [1, 3])
  def test_blocks_change_nothing(self, features, count, monkeypatch):
    rows = features.reshape(-1, 8)
    whole = neighbours.nearest(rows[:10] + 0.5, rows, count)
    alike = prediction.cosine(rows[:10, None] + 0.5, rows[None])
    assert whole.tolist() == np.argsort(-alike)[:, :count].tolist()
    monkeypatch.setattr(neighbours, '_BLOCK', 300)
    assert (neighbours.nearest(rows[:10] + 0.5, rows, count) == whole).all()


class TestBank:
  def test_an_image_is_filled_with_itself(self, features):
    """With its own patches in the bank, nothing changes."""
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    held = bank.Bank(images, features, 2)
    places = np.array([0, 3, 7, 12])
    blank = patches.paste(images[2], np.zeros((4, 2, 2, 3), np.uint8), places)
    filled = held.fill(blank, places, features[2, places])
    assert (filled == images[2]).all()
    assert (blank != images[2]).any()

  def test_agreement_counts_labels(self, features):
    images = np.zeros((6, 8, 8, 3), np.uint8)
    held = bank.Bank(images, features, 2)
    labels = {'kind': np.array([0, 0, 1, 1, 2, 2])}
    # Two patches of image 0 and one of image 4, of classes 0 and 1.
    holes = [
      prediction.Hole(np.array([1, 2]), features[0, [1, 2]], np.zeros((1, 2))),
      prediction.Hole(np.array([5]), features[4, [5]], np.zeros((1, 1))),
    ]
    wanted = {'kind': np.array([0, 1])}
    shares = held.agreement(holes, wanted, labels)
    assert shares == {'kind': pytest.approx(2 / 3)}
    assert bank.chance(wanted['kind'], labels['kind']) == pytest.approx(1 / 3)


@pytest.fixture(scope='module')
def both():
  """Predictor and learner of the same weights, and a batch."""
  config = cases.config()
  state = cases.state(config)
  architecture = Architecture(sizes.SIZES['golden'], 8, 48)
  predictor = prediction.Predictor(
    architecture,
    train_step.predictor_size(config),
    state.params['encoder'],
    state.params['predictor'],
  )
  return predictor, train_step.Learner(config), state, cases.batch(config)


def masks_of(batch):
  return masks_lib.Masks(
    *(batch[name] for name in train_step.DEVICE_FIELDS[1:]),
    uncut_length=batch['context_length'],
    overlaps=np.zeros(len(batch['image']), bool),
  )


class TestPrediction:
  def test_predictions_are_those_of_training(self, both):
    predictor, learner, state, batch = both
    masks = masks_of(batch)
    images = train_step.normalise(batch['image'])

    @jax.jit
    def theirs(state):
      return (
        learner.predictions(state.params, images, batch, None),
        learner.encode(state.target, images),
        learner.loss(state.params, state.target, images, batch)[1],
      )

    predictions, features, health = theirs(state)
    ours = predictor(batch['image'], masks)
    length = batch['target_length'][0]
    assert (
      cases.difference(ours[:, :, :length], predictions[:, :, :length]) < 1e-5
    )
    truth = prediction.targets(features)
    cosines = prediction.block_cosines(ours, truth, masks)
    # An independent way to the same figure.
    assert cosines.mean() == pytest.approx(
      float(health['prediction_target_cosine']), abs=1e-5
    )

  def test_an_untrained_predictor_says_something_else(self, both):
    predictor, _, _, batch = both
    masks = masks_of(batch)
    ours = predictor(batch['image'], masks)
    other = predictor.untrained(0.02, 0)(batch['image'], masks)
    assert np.abs(ours - other).max() > 1e-2

  def test_overlapping_blocks_are_averaged(self, both):
    _, _, _, batch = both
    masks = masks_of(batch)
    predictions = np.zeros((*masks.target.shape, 3), np.float32)
    predictions += np.arange(masks.target.shape[1])[None, :, None, None]
    length = int(masks.target_length[0])
    for image, hole in enumerate(prediction.holes(predictions, masks)):
      assert (np.diff(hole.patches) > 0).all()
      for patch, feature in zip(hole.patches, hole.features):
        blocks = np.flatnonzero(
          (masks.target[image, :, :length] == patch).any(-1)
        )
        np.testing.assert_allclose(feature, blocks.mean(), rtol=1e-6)


class TestSpectrum:
  def test_agrees_with_numpy_and_rankme(self, features):
    rows = features.reshape(-1, 8)
    found = spectrum.spectrum(rows)
    values = np.linalg.svd(rows, compute_uv=False)
    np.testing.assert_allclose(found.values, values / values[0], rtol=1e-5)
    assert found.rankme == pytest.approx(health.rankme(rows), rel=1e-6)

  def test_fewer_images_than_channels(self, features):
    assert len(spectrum.spectrum(features[0, :5]).values) == 5


class TestDecoder:
  def test_learns_what_features_tell(self):
    rng = np.random.default_rng(0)
    known, hidden = rng.normal(size=(2, 400, 4)).astype(np.float32)
    pixels = np.tanh(known @ rng.normal(size=(4, 12)) / 2)
    params = decoder.train(known[:300], pixels[:300], 300)
    for features, low, high in ((known, 0.9, 1.0), (hidden, -9.0, 0.1)):
      said = np.asarray(decoder.decode(params, features[300:]))
      assert low < decoder.explained(said, pixels[300:]) <= high

  def test_patches_come_back(self):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    cut = patches.cut(images, 4)
    assert (decoder.to_patches(decoder.to_pixels(cut), 4) == cut).all()
    whole = patches.paste(np.zeros_like(images[1]), cut[1], np.arange(4))
    assert (whole == images[1]).all()


class TestTsne:
  def test_near_images_stay_near(self):
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1], 20)
    features = rng.normal(size=(40, 5)) + 20 * groups[:, None]
    places = tsne.layout(features.astype(np.float32))
    assert places.shape == (40, 2)
    distances = np.linalg.norm(places[:, None] - places, axis=-1)
    nearest = np.argsort(distances)[:, 1:4]
    assert (groups[nearest] == groups[:, None]).all()

  def test_the_title_has_room_without_labels(self, tmp_path):
    images = np.zeros((10, 8, 8, 3), np.uint8)
    places = np.random.default_rng(0).normal(size=(10, 2))
    tsne.draw_tsne(tmp_path / 't.png', images, places, {}, {})
    pixels = np.asarray(Image.open(tmp_path / 't.png').convert('L'))
    assert (pixels[:50] < 80).any()  # rows of the title
    assert (pixels[:50, -10:] == 255).all()

  def test_a_missing_library_is_named(self, monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn.manifold', None)
    with pytest.raises(errors.UserError, match=r"-e '\.\[visualize\]'"):
      tsne.layout(np.zeros((20, 3), np.float32))


class TestAttention:
  def test_spread(self):
    assert attention.looked_at(np.full(16, 1 / 16)) == pytest.approx(16)
    assert attention.looked_at(np.eye(4)[0]) == pytest.approx(1)

  @pytest.mark.parametrize(
    ('depth', 'expected'),
    [(1, (0,)), (4, (0, 1, 2, 3)), (12, (0, 2, 4, 7, 9, 11))],
  )
  def test_first_and_last_layer_are_drawn(self, depth, expected):
    assert attention.blocks_to_draw(depth) == expected
