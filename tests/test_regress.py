"""Numbers read off features in closed form, against scikit-learn."""

import numpy as np
import pytest
from sklearn import linear_model, metrics, preprocessing

from ijepa_jax.data import dense
from ijepa_jax.evaluation.tasks import regress

RNG = np.random.default_rng(0)


def test_predictions_are_scikit_learns():
  x = RNG.standard_normal((120, 6)).astype(np.float32) * [1, 5, 1, 1, 9, 1] + 3
  values = {
    'linear': x @ RNG.standard_normal(6) + RNG.standard_normal(120),
    'noise': RNG.standard_normal(120),
  }
  train, test = x[:100], x[100:]
  fitted = {name: y[:100] for name, y in values.items()}
  predicted, penalties = regress._ridge(train, fitted, test, seed=0)
  scaler = preprocessing.StandardScaler().fit(train)
  for name, y in fitted.items():
    model = linear_model.Ridge(alpha=penalties[name] * len(train))
    model.fit(scaler.transform(train), y)
    expected = model.predict(scaler.transform(test))
    np.testing.assert_allclose(predicted[name], expected, atol=1e-6)
  # What cannot be predicted gets the strongest penalty.
  assert penalties['linear'] < penalties['noise']


def test_figures_are_scikit_learns():
  truth, guess = RNG.standard_normal((2, 50))
  expected = metrics.r2_score(truth, guess)
  assert regress._r2(truth, guess) == pytest.approx(expected)
  same = np.ones(5)
  for guess_of_same in (same, 2 * same):
    expected = metrics.r2_score(same, guess_of_same)
    assert regress._r2(same, guess_of_same) == expected
  expected = metrics.mean_absolute_error(truth, guess)
  assert regress._mae(truth, guess) == pytest.approx(expected)


def boxes(*corners, crowd=False):
  array = np.array(corners, np.float32).reshape(-1, 4)
  count = len(array)
  return dense.Boxes(array, np.zeros(count, int), np.full(count, crowd))


def test_objects_are_counted_and_the_largest_is_measured():
  images = [
    boxes((0, 0, 0.5, 0.5), (0.5, 0.5, 1, 0.75)),
    boxes(),
    boxes((0, 0, 1, 1), crowd=True),
    boxes((0.2, 0.4, 0.6, 0.8)),
  ]
  counts = regress._counts(images)
  assert counts.values['count'].tolist() == [2, 0, 0, 1]
  largest = regress._largest(images)
  assert largest.rows.tolist() == [0, 3]
  np.testing.assert_allclose(largest.values['size'], [0.5, 0.4], rtol=1e-6)
  np.testing.assert_allclose(largest.values['x'], [0.25, 0.4], rtol=1e-6)
  np.testing.assert_allclose(largest.values['y'], [0.25, 0.6], rtol=1e-6)
