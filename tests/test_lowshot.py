import argparse

import numpy as np
import pytest
from scipy import stats

from ijepa_jax import errors
from ijepa_jax.evaluation import intervals, subsets
from ijepa_jax.evaluation.tasks import lowshot

Y = np.repeat([0, 1, 2], [200, 100, 50])


@pytest.mark.parametrize(
  ('amount', 'counts'),
  [('1%', [2, 1, 1]), ('10%', [20, 10, 5]), ('5', [5, 5, 5])],
)
def test_each_class_has_its_part(amount, counts):
  rows = subsets.draw(Y, amount, seed=0)
  assert np.bincount(Y[rows]).tolist() == counts
  assert (np.diff(rows) > 0).all()


def test_subsets_of_a_seed_are_nested_and_repeat():
  one, five, tenth, all_of_it = (
    set(subsets.draw(Y, amount, seed=3).tolist())
    for amount in ('1', '5', '10%', '100%')
  )
  assert one < five <= tenth < all_of_it == set(range(350))
  np.testing.assert_array_equal(
    subsets.draw(Y, '5', 3), subsets.draw(Y, '5', 3)
  )
  assert set(subsets.draw(Y, '5', 4).tolist()) != five


def test_more_than_there_is_names_what_there_is():
  with pytest.raises(errors.UserError, match=r'class 2 has 50 images.*50'):
    subsets.draw(Y, '51', 0)


@pytest.mark.parametrize('text', ['0%', '101%', '0', 'few', '1%,', '1.5'])
def test_bad_amounts_are_one_line(text):
  with pytest.raises(argparse.ArgumentTypeError, match='neither a share'):
    subsets.amounts(text)


def test_the_interval_of_a_mean_is_students():
  values = [0.5, 0.6, 0.4, 0.55]
  expected = stats.t.interval(
    0.95, 3, np.mean(values), np.std(values, ddof=1) / 2
  )
  np.testing.assert_allclose(intervals.of_mean(values), expected, rtol=1e-4)
  for freedom in (1, 2, 30):
    quantile = intervals._student_quantile(freedom)
    assert quantile == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-4)


def test_a_single_subset_has_the_interval_of_the_test_images():
  low, high, about = lowshot.interval_of([0.75], 400)
  assert (low, high) == intervals.wilson(300, 400)
  assert 'Wilson' in about
  low, high, about = lowshot.interval_of([0.7, 0.8], 400)
  assert (low, high) == (max(0, intervals.of_mean([0.7, 0.8])[0]), 1.0)
  assert 'Student' in about
