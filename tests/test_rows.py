"""Every example is on one process, or on all that share its devices."""

import cluster
import jax
import numpy as np
import pytest
import tiny

from ijepa_jax import rows, sharding


@pytest.fixture
def mesh():
  return sharding.make_mesh(tiny.config())


def test_a_process_alone_holds_every_row(mesh):
  np.testing.assert_array_equal(rows.held(mesh, 16), np.arange(16))


@pytest.mark.parametrize('count', [1, 8, 19])
@pytest.mark.parametrize('shape', [(), (3,), (2, 2)])
def test_gathered_examples_are_those_that_were_held(mesh, count, shape):
  examples = np.random.default_rng(0).integers(0, 99, (count, *shape), np.int32)
  shares = rows.Shares(mesh, 8)
  gathered = shares.gather(examples[shares.mine(count)], count)
  np.testing.assert_array_equal(gathered, examples)


def test_a_function_sees_batches_of_one_size(mesh):
  sizes = []

  def double(batch):
    sizes.append(batch.shape)
    return jax.device_put(2 * batch, sharding.replicated(mesh))

  examples = np.arange(19, dtype=np.int32)
  gathered = rows.Shares(mesh, 8).gather(examples, 19, double)
  np.testing.assert_array_equal(gathered, 2 * examples)
  assert sizes == [(8,)] * 3


def test_processes_along_tensor_hold_the_same_rows():
  started = [
    cluster.start_script('rows_process.py', [], environment)
    for environment in cluster.environments(2, 2)
  ]
  outputs = [process.communicate(timeout=120)[0] for process in started]
  assert [process.returncode for process in started] == [0, 0], outputs
