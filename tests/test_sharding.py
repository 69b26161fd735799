"""The same training on a mesh of devices as on one."""

import itertools
import types

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from ijepa_jax import errors, optim, program, resume, sharding, train_step
from ijepa_jax.data import pipeline, scenes
from ijepa_jax.models import sizes

STEPS = 20

ALL_SPLITS = [
  split
  for split in itertools.product((1, 2, 4, 8), repeat=3)
  if np.prod(split) == 8
]
# Each axis alone is in one of these, and all together.
FAST_SPLITS = [(8, 1, 1), (2, 2, 2), (1, 1, 8)]
SPLITS = [
  pytest.param(
    *split,
    marks=[] if split in FAST_SPLITS else [pytest.mark.slow],
    id='x'.join(map(str, split)),
  )
  for split in ALL_SPLITS
]


@pytest.fixture(scope='module', autouse=True)
def eight_heads():
  """A size that can be split over 8 devices in any way."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(sizes.SIZES, 'vit_micro', sizes.Size(64, 2, 8))
    yield


def make_config(data=1, fsdp=1, tensor=1):
  return tiny.config(
    total_steps=STEPS,
    batch_size=16,
    predictor__width=64,
    mesh__data=data,
    mesh__fsdp=fsdp,
    mesh__tensor=tensor,
  )


def run(data, fsdp, tensor):
  """Losses and final parameters of a run on a mesh."""
  config = make_config(data, fsdp, tensor)
  mesh = sharding.make_mesh(config, jax.devices()[: data * fsdp * tensor])
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
  return run(1, 1, 1)


def test_there_are_ten_splits_of_eight_devices():
  assert len(ALL_SPLITS) == 10


@pytest.mark.parametrize(('data', 'fsdp', 'tensor'), SPLITS)
def test_a_mesh_trains_like_one_device(one_device, data, fsdp, tensor):
  losses, state = run(data, fsdp, tensor)
  np.testing.assert_allclose(losses, one_device[0], rtol=0, atol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5),
    (state.params, state.target),
    (one_device[1].params, one_device[1].target),
  )


def test_parameters_target_and_moments_are_split_alike():
  config = make_config(1, 4, 2)
  shapes = jax.eval_shape(lambda: train_step.init_state(config))
  shardings = sharding.state_shardings(sharding.make_mesh(config), shapes)
  specs = {
    sharding.path_name(path): leaf.spec
    for path, leaf in jax.tree.leaves_with_path(shardings)
  }
  for name, spec in (
    ('qkv', P(None, ('fsdp', 'tensor'), None)),
    ('proj', P(None, 'tensor', 'fsdp')),
    ('fc1', P(None, 'fsdp', 'tensor')),
    ('fc2', P(None, 'tensor', 'fsdp')),
  ):
    found = [
      specs[path]
      for path in specs
      if path.endswith(f'trunk/blocks/{name}/kernel')
    ]
    # Encoder and predictor with two moments each, and the target.
    assert found == [spec] * 7


def test_a_device_holds_its_share_of_the_kernels():
  config = make_config(1, 4, 2)
  state = resume.abstract_state(config, sharding.make_mesh(config))
  for kernel in ('qkv', 'proj', 'fc1', 'fc2'):
    leaf = state.target['trunk']['blocks'][kernel]['kernel']
    share = np.prod(leaf.sharding.shard_shape(leaf.shape))
    assert share * 8 == leaf.size


def test_a_dimension_that_does_not_divide_names_the_parameter():
  config = make_config(1, 8, 1)
  mesh = sharding.make_mesh(config)
  config.predictor.width, config.predictor.heads = 36, 3
  shapes = jax.eval_shape(lambda: train_step.init_state(config))
  with pytest.raises(errors.UserError, match=r'mesh.fsdp=8.*predictor/.*kerne'):
    sharding.state_shardings(mesh, shapes)


# --- Several hosts ---------------------------------------------------------


def fake_devices(hosts, each, processes_of_a_host=1):
  """GPUs of several hosts: `slice_index` is the host, as JAX has it."""
  return [
    types.SimpleNamespace(
      id=host * each + i,
      slice_index=host,
      process_index=host * processes_of_a_host
      + i * processes_of_a_host // each,
      platform='gpu',
      device_kind='fake',
    )
    for host in range(hosts)
    for i in range(each)
  ]


def hosts_along(placed, axis):
  """The largest number of hosts that a line of devices along `axis` is on."""
  hosts = np.vectorize(lambda device: device.slice_index)(placed)
  lines = np.moveaxis(hosts, axis, -1).reshape(-1, placed.shape[axis])
  return max(len(set(line)) for line in lines.tolist())


@pytest.mark.parametrize(
  ('shape', 'hosts'),
  [
    ((4, 4, 2), (4, 1, 1)),  # fsdp and tensor fill a host
    ((8, 2, 2), (4, 1, 1)),
    ((16, 1, 2), (4, 1, 1)),
    ((2, 8, 2), (2, 2, 1)),  # two hosts per copy of the parameters
    ((1, 32, 1), (1, 4, 1)),
  ],
)
def test_fsdp_and_tensor_stay_inside_a_host_where_they_can(shape, hosts):
  placed = sharding.arrange(shape, fake_devices(4, 8, processes_of_a_host=8))
  assert placed.shape == shape
  assert len({device.id for device in placed.flat}) == 32
  assert tuple(hosts_along(placed, axis) for axis in range(3)) == hosts


def test_tensor_never_goes_between_hosts():
  with pytest.raises(errors.UserError, match=r'mesh.tensor=16.*4 hosts of 8'):
    sharding.arrange((2, 1, 16), fake_devices(4, 8))


def test_hosts_of_different_sizes_are_refused():
  devices = fake_devices(1, 4) + fake_devices(2, 8)[8:]
  with pytest.raises(errors.UserError, match='as many devices'):
    sharding.arrange((12, 1, 1), devices)
