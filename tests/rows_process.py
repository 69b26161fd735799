"""One of two processes with two devices each, which share their rows.

`test_rows` starts it: along `tensor`, where one device of each process is, both
processes hold all rows of a batch.
"""

import jax
import numpy as np
import tiny

from ijepa_jax import distributed, rows, sharding

if __name__ == '__main__':
  with distributed.joined(tiny.config()):
    devices = np.array(jax.devices()).reshape(2, 2)
    mesh = jax.sharding.Mesh(devices.T[:, None], sharding.AXES)
    np.testing.assert_array_equal(rows.held(mesh, 8), np.arange(8))

    batch = np.arange(8, dtype=np.float32)
    put = sharding.put_batch(mesh, {'rows': batch})['rows']
    assert put.shape == (8,)
    for shard in put.addressable_shards:
      np.testing.assert_array_equal(shard.data, batch[shard.index])

    shares = rows.Shares(mesh, 8)
    examples = np.arange(19, dtype=np.int32)
    np.testing.assert_array_equal(shares.mine(19), examples)
    np.testing.assert_array_equal(shares.gather(examples, 19), examples)

    # Each row counts once, though two processes brought it.
    whole = jax.jit(lambda x: x.sum(), out_shardings=sharding.replicated(mesh))
    assert float(whole(put)) == batch.sum()
