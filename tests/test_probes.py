"""Probes, health figures and the online evaluation."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from ijepa_jax.evaluation import health, online, probes


def make_features(n=300, d=20, classes=4, noise=2.0, seed=0):
  """Overlapping clusters, off centre and badly scaled, as features are."""
  rng = np.random.default_rng(seed)
  y = rng.integers(0, classes, n)
  x = rng.normal(size=(classes, d))[y] + noise * rng.normal(size=(n, d))
  return (x * rng.uniform(0.1, 10, d) + 3).astype(np.float32), y


def sklearn_ridge(train_x, train_y, test_x, penalty):
  """Predictions of ridge regression to one-hot targets."""
  scaler = StandardScaler().fit(train_x.astype(np.float64))
  one_hot = OneHotEncoder(sparse_output=False).fit_transform(train_y[:, None])
  ridge = Ridge(alpha=penalty * len(train_x), solver='svd')
  ridge.fit(scaler.transform(train_x), one_hot)
  scores = ridge.predict(scaler.transform(test_x))
  return np.unique(train_y)[scores.argmax(1)]


class TestKnn:
  def test_equals_sklearn(self):
    x, y = make_features()
    reference = KNeighborsClassifier(
      n_neighbors=20,
      metric='cosine',
      algorithm='brute',
      weights=lambda distance: np.exp((1 - distance) / 0.07),
    ).fit(x[:200], y[:200])
    predicted = probes.knn_predict(x[:200], {'y': y[:200]}, x[200:])['y']
    np.testing.assert_array_equal(predicted, reference.predict(x[200:]))

  def test_near_neighbours_outvote_many_far_ones(self):
    train = np.array([[1, 0], [0.6, 0.8], [0.6, -0.8]], np.float32)
    labels = {'y': np.array([7, 3, 3])}
    test = np.array([[2, 0]], np.float32)
    assert probes.knn_predict(train, labels, test, k=3)['y'] == [7]
    cold = probes.knn_predict(train, labels, test, k=3, temperature=10)
    assert cold['y'] == [3]

  def test_more_neighbours_than_images(self):
    x, y = make_features(n=12)
    few, many = (
      probes.knn_predict(x[:8], {'y': y[:8]}, x[8:], k=k) for k in (8, 20)
    )
    np.testing.assert_array_equal(few['y'], many['y'])

  def test_features_of_zeros_are_harmless(self):
    x, y = make_features(n=60)
    x[::7] = 0
    predicted = probes.knn_predict(x[:40], {'y': y[:40]}, x[40:])['y']
    assert set(predicted) <= set(y)


class TestRidge:
  @pytest.mark.parametrize('penalty', [1e-4, 0.1, 10.0])
  @pytest.mark.parametrize('n', [12, 200])  # fewer and more than features
  def test_equals_sklearn(self, penalty, n):
    x, y = make_features()
    predicted = probes.ridge_predict(
      x[:n], {'y': y[:n]}, x[200:], penalties=[penalty]
    )['y']
    expected = sklearn_ridge(x[:n], y[:n], x[200:], penalty)
    np.testing.assert_array_equal(predicted, expected)

  def test_penalty_is_the_best_on_a_held_out_fifth(self):
    # Many useless features: little regularisation overfits visibly.
    x, y = make_features(n=400, d=150, noise=4.0)
    train_x, train_y, test_x = x[:200], y[:200], x[200:]
    order = np.random.default_rng(0).permutation(200)
    held, rest = order[:40], order[40:]
    scaler = StandardScaler().fit(train_x.astype(np.float64))
    scaled = scaler.transform(train_x)
    one_hot = np.eye(4)[train_y]
    accuracies = {}
    for penalty in probes.PENALTIES:
      ridge = Ridge(alpha=penalty * 160, solver='svd')
      ridge.fit(scaled[rest], one_hot[rest])
      guess = ridge.predict(scaled[held]).argmax(1)
      accuracies[penalty] = np.mean(guess == train_y[held])
    best = max(
      p for p, a in accuracies.items() if a == max(accuracies.values())
    )
    assert best != min(probes.PENALTIES)
    predicted = probes.ridge_predict(train_x, {'y': train_y}, test_x)['y']
    expected = sklearn_ridge(train_x, train_y, test_x, best)
    np.testing.assert_array_equal(predicted, expected)

  def test_training_set_sorted_by_class(self):
    x, y = make_features(n=500, noise=0.5)
    order = np.argsort(y[:400], kind='stable')
    predicted = probes.ridge_predict(
      x[:400][order], {'y': y[:400][order]}, x[400:]
    )
    assert probes.accuracy(predicted['y'], y[400:]) > 0.95

  def test_constant_features_are_left_out(self):
    x, y = make_features()
    constants = np.tile(np.float32([0, 1e6, 1 / 3]), (len(x), 1))
    constants[:, 1] += y / 16  # the last bit of a float32: rounding errors
    wider = np.concatenate([x, constants], axis=1)
    np.testing.assert_array_equal(
      probes.ridge_predict(wider[:200], {'y': y[:200]}, wider[200:])['y'],
      probes.ridge_predict(x[:200], {'y': y[:200]}, x[200:])['y'],
    )


@pytest.mark.parametrize('predict', [probes.knn_predict, probes.ridge_predict])
class TestBoth:
  def test_labels_do_not_influence_each_other(self, predict):
    x, y = make_features()
    z = np.random.default_rng(1).integers(5, 8, len(x))
    both = predict(x[:200], {'y': y[:200], 'z': z[:200]}, x[200:])
    for name, labels in {'y': y, 'z': z}.items():
      alone = predict(x[:200], {name: labels[:200]}, x[200:])
      np.testing.assert_array_equal(both[name], alone[name])

  def test_small_blocks_give_the_same(self, predict, monkeypatch):
    x, y = make_features()
    whole = predict(x[:200], {'y': y[:200]}, x[200:])['y']
    monkeypatch.setattr(probes, '_BLOCK_ELEMENTS', 1000)
    blocked = predict(x[:200], {'y': y[:200]}, x[200:])['y']
    np.testing.assert_array_equal(blocked, whole)


class TestHealth:
  @pytest.mark.parametrize('shape', [(30, 8), (8, 30)])
  def test_rankme_is_the_entropy_of_singular_values(self, shape):
    x = np.random.default_rng(0).normal(size=shape) + 1
    sigma = np.linalg.svd(x, compute_uv=False)
    p = sigma / sigma.sum() + 1e-7
    expected = np.exp(-np.sum(p * np.log(p)))
    assert health.rankme(x) == pytest.approx(expected, rel=1e-9)

  @pytest.mark.parametrize(
    ('features', 'expected'),
    [
      (np.ones((50, 16)), 1),
      (np.concatenate([np.eye(16)] * 2), 16),
      (np.zeros((50, 16)), 0),
    ],
  )
  def test_rankme_at_its_ends(self, features, expected):
    features = features.astype(np.float32)
    assert health.rankme(features) == pytest.approx(expected, rel=1e-4)

  def test_mean_cosine_is_over_different_images(self):
    x = np.random.default_rng(0).normal(size=(9, 5)) + 0.5
    pairs = [
      a @ b / np.linalg.norm(a) / np.linalg.norm(b)
      for i, a in enumerate(x)
      for j, b in enumerate(x)
      if i != j
    ]
    assert health.mean_cosine(x) == pytest.approx(np.mean(pairs))

  def test_feature_std_is_zero_for_equal_features(self):
    one = np.random.default_rng(0).normal(size=(1, 8)).astype(np.float32)
    assert health.feature_std(np.tile(one, (20, 1))) == pytest.approx(0)
    assert health.feature_std(np.array([[0, 1], [2, 5]])) == 1.5


def evaluate(train, test, encode):
  evaluation = online.OnlineEvaluation(train, test)
  return evaluation.evaluate(*evaluation.features(encode))


class TestOnlineEvaluation:
  def make(self, n=120, size=24):
    """Images whose left half is the brighter, the more so the higher `y`."""
    rng = np.random.default_rng(0)
    labels = {'side': rng.integers(0, 3, n), 'noise': rng.integers(0, 2, n)}
    images = rng.integers(0, 120, (n, size, size, 3))
    images[:, :, : size // 2] += 60 * labels['side'][:, None, None, None]
    images = images.astype(np.uint8)

    def part(rows):
      part = images[rows]
      named = {name: y[rows] for name, y in labels.items()}
      return online.LabelledImages(part, named, len(part))

    return part(slice(80)), part(slice(80, None))

  def test_names_and_values(self):
    train, test = self.make()
    seen = []

    def encode(images):
      seen.append(images)
      # One value per column.
      return images.images.mean((1, 3)).astype(np.float32)

    results = evaluate(train, test, encode)
    assert set(results) == {
      'health/rankme',
      'health/feature_std',
      'health/image_cosine',
      'probe/side/knn',
      'probe/side/linear',
      'probe/noise/knn',
      'probe/noise/linear',
    }
    assert results['probe/side/linear'] > 0.8
    assert results['probe/noise/linear'] < 0.8
    features = encode(test)
    assert results['health/rankme'] == health.rankme(features)
    assert any(images is train for images in seen)

  def test_pixels_are_probed_small(self, monkeypatch):
    train, test = self.make(size=40)
    widths = []
    original = probes.knn_predict

    def record(x, *args):
      widths.append(x.shape[1])
      return original(x, *args)

    monkeypatch.setattr(probes, 'knn_predict', record)
    evaluation = online.OnlineEvaluation(train, test)
    results = evaluation.probe(
      *evaluation.features(lambda images: online.as_vectors(images.images))
    )
    assert results['probe/side/linear'] > 0.8
    assert widths == [16 * 16 * 3]

  def test_chance_is_the_commonest_class_of_train(self):
    images = np.zeros((4, 8, 8, 3), np.uint8)
    train = online.LabelledImages(images, {'y': np.array([0, 1, 1, 1])}, 4)
    test = online.LabelledImages(images, {'y': np.array([0, 0, 0, 1])}, 4)
    assert online.OnlineEvaluation(train, test).chance == {'y': 0.25}

  def test_without_labels_health_alone(self):
    train, test = (s._replace(labels={}) for s in self.make())
    results = evaluate(
      train, test, lambda images: images.images[:, 0, :, 0] / 255
    )
    assert {name.split('/')[0] for name in results} == {'health'}

  def test_features_that_are_not_finite_give_nan(self):
    train, test = self.make()
    results = evaluate(
      train,
      test,
      lambda images: np.full((images.total, 8), np.nan, np.float32),
    )
    assert len(results) == 7
    assert np.isnan(list(results.values())).all()

  def test_different_labels_are_refused(self):
    train, test = self.make()
    with pytest.raises(ValueError, match='noise'):
      online.OnlineEvaluation(train, test._replace(labels={}))
