"""The device mesh, and where every array of state and batch lives on it."""

import collections
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ijepa_jax import errors
from ijepa_jax.config import mesh as mesh_config

AXES = mesh_config.AXES
# The batch is split over both, and is the same along `tensor`.
BATCH = P(('data', 'fsdp'))

# The first match of a parameter's path decides. Specs are aligned to the
# trailing dimensions: the stacked axis of the blocks needs no rule of its
# own. The same table serves parameters, EMA target and Adam moments.
#
# Along `tensor`, qkv and fc1 make some of the heads and hidden channels, proj
# and fc2 take them, and sum. `layers.Linear.parts` says why qkv is stored
# otherwise than it is used.
RULES = (
  (r'qkv/kernel$', P(('fsdp', 'tensor'), None)),
  (r'fc1/kernel$', P('fsdp', 'tensor')),
  (r'(trunk/.*proj|fc2)/kernel$', P('tensor', 'fsdp')),
  (r'/embed/kernel$', P('fsdp', None)),
  (r'(patch_embed|predictor/proj)/kernel$', P(None, 'fsdp')),
  (r'', P()),
)

# Of the names that the models give to axes (`layers.Axes`).
_LOGICAL = {'batch': BATCH[0], 'shard': 'fsdp', 'heads': 'tensor', None: None}


def make_mesh(
  config: ml_collections.ConfigDict, devices: Sequence[Any] | None = None
) -> Mesh:
  """The mesh `data x fsdp x tensor`; -1 fills an axis.

  Args:
    config: reads `mesh`.
    devices: None: all.

  Raises:
    UserError: the axes do not make up the devices, or do not fit the hosts.
  """
  devices = jax.devices() if devices is None else devices
  shape = mesh_config.shape(config.mesh, len(devices))
  return Mesh(
    arrange(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES)
  )


def arrange(shape: tuple[int, int, int], devices: Sequence[Any]) -> np.ndarray:
  """Devices as an array `shape`, neighbours along tensor, then along fsdp.

  Between hosts (of TPUs: between slices) goes `data` where it can, then `fsdp`,
  never `tensor`.

  Raises:
    UserError: `tensor` would have to go between hosts.
  """
  hosts = collections.Counter(map(_host, devices))
  each = min(hosts.values())
  if max(hosts.values()) != each:
    raise errors.UserError(
      f'{len(devices)} devices on {len(hosts)} hosts: expected as many devices '
      'on each'
    )
  outer = math.gcd(shape[0], len(hosts))
  rest = len(hosts) // outer
  if shape[1] % rest:
    raise errors.UserError(
      f'mesh.tensor={shape[2]}: expected devices of one host, and there are '
      f'{len(hosts)} hosts of {each} devices; nearest: '
      f'{mesh_config.nearest_divisor(shape[2], each)}'
    )
  inner = shape[0] // outer, shape[1] // rest, shape[2]
  if len(hosts) == 1:
    return mesh_utils.create_device_mesh(
      inner, devices, allow_split_physical_axes=True
    )
  return mesh_utils.create_hybrid_device_mesh(
    inner,
    (outer, rest, 1),
    devices,
    process_is_granule=not hasattr(devices[0], 'slice_index'),
    allow_split_physical_axes=True,
  )


def _host(device: Any) -> int:
  """What `device` shares with those that it reaches fast.

  GPUs of a host and TPUs of a slice have the same `slice_index`, whatever the
  number of processes is.
  """
  return getattr(device, 'slice_index', device.process_index)


def path_name(path: jax.tree_util.KeyPath) -> str:
  """`params/encoder/trunk/blocks/qkv/kernel`."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def state_shardings(mesh: Mesh, abstract_state: Any) -> Any:
  """Shardings for every leaf of a state, by `RULES`.

  Raises:
    UserError: a dimension does not divide by its mesh axes.
  """

  def sharding(path: jax.tree_util.KeyPath, leaf: Any) -> NamedSharding:
    name = path_name(path)
    spec = next(spec for rule, spec in RULES if re.search(rule, name))
    spec = P(*(None,) * (leaf.ndim - len(spec)), *spec)
    for size, axes in zip(leaf.shape, spec):
      axes = (axes,) if isinstance(axes, str) else axes or ()
      if size % math.prod(mesh.shape[axis] for axis in axes):
        named = ' x '.join(f'mesh.{axis}={mesh.shape[axis]}' for axis in axes)
        raise errors.UserError(
          f'{named} does not divide {size}, a dimension of {name} '
          f'{leaf.shape}; choose a divisor of {size}'
        )
    return NamedSharding(mesh, spec)

  return jax.tree.map_with_path(sharding, abstract_state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Batches, and all activations, are split along their first axis."""
  return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
  """A whole copy on every device."""
  return NamedSharding(mesh, P())


def put_batch(mesh: Mesh, batch: Mapping[str, Any]) -> dict[str, Any]:
  """Makes global arrays of this process's rows of a batch."""
  sharding = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, rows)
    for name, rows in batch.items()
  }


def constrain(mesh: Mesh) -> Callable[..., jax.Array]:
  """Pins arrays inside the step to the mesh (a `layers.Constrain`).

  Without it XLA may gather whole activations to follow a parameter's layout.
  """

  def pin(x: jax.Array, axes: Sequence[str | None] = ('batch',)) -> jax.Array:
    spec = P(*(_LOGICAL[axis] for axis in axes))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

  return pin
