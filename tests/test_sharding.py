"""The same training on a mesh of devices as on one."""

import jax
import numpy as np
import pytest
import tiny

from ijepa_jax import errors, optim, program, resume, sharding, train_step
from ijepa_jax.data import pipeline, scenes

STEPS = 20


def make_mesh(config, devices):
  sizes = tuple(config.mesh[axis] for axis in sharding.AXES)
  return jax.make_mesh(
    sizes,
    sharding.AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
    devices=jax.devices()[:devices],
  )


def run(data, fsdp):
  """Losses and final parameters of a run on data x fsdp devices."""
  config = tiny.config(
    total_steps=STEPS, batch_size=16, mesh__data=data, mesh__fsdp=fsdp
  )
  mesh = make_mesh(config, data * fsdp)
  learner = train_step.Learner(config, sharding.constrain(mesh))
  state = resume.init_state(config, mesh)
  step = program.compile_step(config, learner, state, mesh)
  schedules = optim.make_schedules(config, 10)
  dataset = pipeline.make_dataset(config, scenes.ScenesSource('train', 24, 0))
  losses = []
  for i in range(STEPS):
    batch = {name: dataset[i][name] for name in train_step.DEVICE_FIELDS}
    state, metrics = step(
      state, sharding.put_batch(mesh, batch), schedules.at(i)
    )
    losses.append(float(metrics['loss']))
  return np.array(losses), jax.device_get(state)


@pytest.fixture(scope='module')
def one_device():
  return run(1, 1)


@pytest.mark.parametrize(('data', 'fsdp'), [(8, 1), (2, 4), (1, 8)])
def test_a_mesh_trains_like_one_device(one_device, data, fsdp):
  losses, state = run(data, fsdp)
  np.testing.assert_allclose(losses, one_device[0], atol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    (state.params, state.target),
    (one_device[1].params, one_device[1].target),
  )


def test_parameters_target_and_moments_are_split_alike():
  config = tiny.config(mesh__fsdp=8, mesh__data=1)
  mesh = make_mesh(config, 8)
  shapes = jax.eval_shape(lambda: train_step.init_state(config))
  shardings = sharding.state_shardings(mesh, shapes)
  kernels = {
    sharding.path_name(path): leaf.spec
    for path, leaf in jax.tree.leaves_with_path(shardings)
    if 'encoder' in sharding.path_name(path)
    and sharding.path_name(path).endswith('qkv/kernel')
  }
  assert len(kernels) == 3  # params, mu, nu; target has no 'encoder' in it
  assert set(kernels.values()) == {
    jax.sharding.PartitionSpec(None, 'fsdp', 'tensor')
  }
  target = shardings.target['trunk']['blocks']['qkv']['kernel']
  assert target.spec == jax.sharding.PartitionSpec(None, 'fsdp', 'tensor')


def test_a_dimension_that_does_not_divide_names_the_parameter():
  config = tiny.config(predictor__width=36, predictor__heads=3)
  mesh = make_mesh(tiny.config(mesh__fsdp=8, mesh__data=1), 8)
  shapes = jax.eval_shape(lambda: train_step.init_state(config))
  with pytest.raises(errors.UserError, match=r'predictor/.*kernel'):
    sharding.state_shardings(mesh, shapes)


def test_a_mesh_of_the_wrong_size_is_refused():
  config = tiny.config()
  config.mesh.data, config.mesh.fsdp = 3, 2
  with pytest.raises(errors.UserError, match='makes 6 devices'):
    sharding.make_mesh(config)
