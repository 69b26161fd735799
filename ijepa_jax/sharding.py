"""The device mesh, and where every array of state and batch lives on it."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ijepa_jax import errors

AXES = ('data', 'fsdp', 'tensor')
# The batch is split over both; only `fsdp` splits parameters too.
BATCH = P(('data', 'fsdp'))

# The first match of a parameter's path decides. Specs are aligned to the
# trailing dimensions: the stacked axis of the blocks needs no rule of its
# own. The same table serves parameters, EMA target and Adam moments.
RULES = (
  (r'(qkv|fc1|/embed)/kernel$', P('fsdp', 'tensor')),
  (r'(trunk/.*proj|fc2)/kernel$', P('tensor', 'fsdp')),
  (r'(patch_embed|predictor/proj)/kernel$', P(None, 'fsdp')),
  (r'', P()),
)


def make_mesh(config: ml_collections.ConfigDict) -> jax.sharding.Mesh:
  """The mesh `data x fsdp x tensor` over all devices; -1 fills an axis.

  Raises:
    UserError: the axes' product is not the number of devices.
  """
  sizes = [config.mesh[axis] for axis in AXES]
  devices = jax.device_count()
  if -1 in sizes:
    known = 1
    for size in sizes:
      known *= size if size != -1 else 1
    sizes[sizes.index(-1)] = max(1, devices // known)
  product = sizes[0] * sizes[1] * sizes[2]
  if product != devices:
    named = ' x '.join(f'mesh.{a}={s}' for a, s in zip(AXES, sizes))
    raise errors.UserError(
      f'{named} makes {product} devices, but there are {devices}; '
      'set one axis to -1 to fill it'
    )
  return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3)


def path_name(path: jax.tree_util.KeyPath) -> str:
  """`params/encoder/trunk/blocks/qkv/kernel`."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def state_shardings(mesh: jax.sharding.Mesh, abstract_state: Any) -> Any:
  """Shardings for every leaf of a state, by `RULES`.

  Raises:
    UserError: a dimension does not divide by its mesh axis.
  """

  def sharding(path: jax.tree_util.KeyPath, leaf: Any) -> NamedSharding:
    name = path_name(path)
    spec = next(spec for rule, spec in RULES if re.search(rule, name))
    spec = P(*(None,) * (leaf.ndim - len(spec)), *spec)
    for size, axis in zip(leaf.shape, spec):
      if axis is not None and size % mesh.shape[axis]:
        raise errors.UserError(
          f'mesh.{axis}={mesh.shape[axis]} does not divide {size}, a '
          f'dimension of {name} {leaf.shape}; choose a divisor of {size}'
        )
    return NamedSharding(mesh, spec)

  return jax.tree.map_with_path(sharding, abstract_state)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Batches, and all activations, are split along their first axis."""
  return NamedSharding(mesh, BATCH)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """A whole copy on every device."""
  return NamedSharding(mesh, P())


def put_batch(mesh: jax.sharding.Mesh, batch: dict[str, Any]) -> dict[str, Any]:
  """Makes global arrays of this process's rows of a batch."""
  sharding = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, rows)
    for name, rows in batch.items()
  }


def constrain(mesh: jax.sharding.Mesh) -> Callable[[jax.Array], jax.Array]:
  """Pins the batch axis of activations to the mesh.

  Without it XLA may gather whole activations to follow a parameter's layout.
  """
  return functools.partial(
    jax.lax.with_sharding_constraint, shardings=batch_sharding(mesh)
  )
