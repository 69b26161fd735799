"""Takes a state from the devices that it was saved on to those that are here.

  python tests/restore_process.py WORKDIR DATA FSDP TENSOR

Reads the newest checkpoint of a workdir onto that mesh, compares it bit by bit
and saves it as the next step. Where there is none, what is saved is the known
state. `test_restore` starts it, once or as several processes.
"""

import pathlib
import sys
import zlib

import jax
import numpy as np
import tiny

from ijepa_jax import checkpoint, distributed, resume, sharding
from ijepa_jax.models import sizes

# A size that can be split over 8 devices in any way.
SIZE = sizes.Size(64, 2, 8)


def known(path, leaf):
  """Random bits of a leaf's shape: numbers of all kinds, NaN among them."""
  rng = np.random.default_rng(zlib.crc32(sharding.path_name(path).encode()))
  bits = rng.bytes(leaf.size * leaf.dtype.itemsize)
  return np.frombuffer(bits, leaf.dtype).reshape(leaf.shape)


def require_known(path, wanted, leaf):
  """Raises unless a leaf is split as it should be, and has those bits."""
  assert leaf.sharding == wanted.sharding, path
  whole = known(path, wanted)
  for shard in leaf.addressable_shards:
    assert np.asarray(shard.data).tobytes() == whole[shard.index].tobytes()


def pass_on(workdir, data, fsdp, tensor):
  """Restores, compares and saves; the first time saves the known state."""
  config = tiny.config(
    batch_size=16,
    predictor__width=64,
    mesh__data=data,
    mesh__fsdp=fsdp,
    mesh__tensor=tensor,
  )
  devices = jax.devices()[: data * fsdp * tensor]
  wanted = resume.abstract_state(config, sharding.make_mesh(config, devices))
  checkpoints = checkpoint.Checkpoints(workdir, keep=2, keep_period=None)
  newest = checkpoints.latest_step()
  if newest is None:
    state = jax.tree.map_with_path(
      lambda path, leaf: jax.make_array_from_callback(
        leaf.shape, leaf.sharding, known(path, leaf).__getitem__
      ),
      wanted,
    )
  else:
    checkpoints.verify(newest)
    state = checkpoints.restore(newest, wanted)
  jax.tree.map_with_path(require_known, wanted, state)
  checkpoints.save((newest or 0) + 1, state, {})
  checkpoints.close()


if __name__ == '__main__':
  sizes.SIZES['vit_micro'] = SIZE
  with distributed.joined(tiny.config()):
    pass_on(pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:]))
