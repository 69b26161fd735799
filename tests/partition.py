"""Partitions the training step and prints what it sends, as JSON.

  python tests/partition.py '[[data, fsdp, tensor, depth], ...]'

In a process of its own: XLA's partitioner writes its warnings to stderr.
"""

import dataclasses
import json
import os
import sys

if __name__ == '__main__':
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'
  os.environ['TF_CPP_MIN_LOG_LEVEL'] = '0'

  import tiny

  from ijepa_jax.models import sizes
  from ijepa_jax.plan import step

  results = []
  for *shape, depth in json.loads(sys.argv[1]):
    sizes.SIZES['vit_micro'] = sizes.Size(64, depth, 8)
    data, fsdp, tensor = shape
    config = tiny.config(
      batch_size=16,
      predictor__width=64,
      predictor__depth=depth,
      mesh__data=data,
      mesh__fsdp=fsdp,
      mesh__tensor=tensor,
    )
    made = step.compile_step(config, data * fsdp * tensor, near=8)
    results.append([dataclasses.asdict(x) for x in made.collectives])
  print(json.dumps(results))
