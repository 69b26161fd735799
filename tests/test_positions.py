"""Position tables at other resolutions."""

import numpy as np
import pytest
import small_weights

from ijepa_jax.interop import positions


@pytest.fixture(scope='module')
def golden():
  return small_weights.golden_arrays('positions')


@pytest.mark.parametrize('grid', [(7, 7), (4, 6)])
def test_interpolation_is_that_of_hugging_face(golden, grid):
  resized = positions.interpolate(golden['table_4x4'], (4, 4), grid)
  theirs = golden['table_{}x{}'.format(*grid)]
  np.testing.assert_allclose(resized, theirs, atol=3e-7)
  assert resized.dtype == np.float32


def test_the_same_grid_is_the_same_table(golden):
  table = golden['table_4x4']
  assert positions.interpolate(table, (4, 4), (4, 4)) is table


def test_rows_and_columns_are_not_exchanged(golden):
  table = golden['table_4x4']
  swapped = table.reshape(4, 4, -1).swapaxes(0, 1).reshape(16, -1)
  a = positions.interpolate(table, (4, 4), (4, 6)).reshape(4, 6, -1)
  b = positions.interpolate(swapped, (4, 4), (6, 4)).reshape(6, 4, -1)
  np.testing.assert_allclose(a, b.swapaxes(0, 1), atol=1e-7)


@pytest.mark.parametrize('new', [1, 2, 3, 9])
@pytest.mark.parametrize('old', [1, 2, 5])
def test_a_constant_stays_constant(old, new):
  weights = positions.axis_weights(old, new)
  assert weights.shape == (new, old)
  np.testing.assert_allclose(weights.sum(1), 1)
