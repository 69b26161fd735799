"""One start of a training run, up to its first step: a process of its own.

  python -m ijepa_jax.benchmark.first_step --config=FILE [--config.FIELD=VALUE]

The same order as in `train`, without what it writes and without an evaluation.
`startup` runs it and reads the last line: what was started, seconds per stage,
and whether the step came out of the persistent compilation cache, as JSON.
"""

import collections
import json
import os
import sys
import time

# Before all other imports: they are a stage.
_BEGAN = time.time()
# When `startup` started this process, in Unix seconds.
LAUNCHED = 'IJEPA_JAX_LAUNCHED'


def main() -> None:
  """Prints the stages in their order."""
  stages: dict[str, float] = {}
  last = time.perf_counter()

  def end(stage: str) -> None:
    nonlocal last
    now = time.perf_counter()
    stages[stage] = now - last
    last = now

  stages['python'] = _BEGAN - float(os.environ.get(LAUNCHED, _BEGAN))

  from ijepa_jax.config import command

  config, _ = command.parse(sys.argv)
  import jax

  from ijepa_jax import (
    compilation_cache,
    program,
    resume,
    sharding,
    train,
    train_step,
  )
  from ijepa_jax.benchmark.trial import name_of, small_schedule
  from ijepa_jax.data import pipeline, sources

  del train  # all that a run imports
  end('import')

  compilation_cache.enable(config.compilation_cache)
  mesh = sharding.make_mesh(config)
  end('devices')
  source = sources.training_source(config)
  dataset = pipeline.make_dataset(config, source)
  learner = train_step.Learner(config, sharding.constrain(mesh))
  end('open data')
  state = jax.block_until_ready(resume.init_state(config, mesh))
  end('state')

  events: dict[str, float] = collections.defaultdict(float)

  def add(event: str, duration_secs: float, **_: str | int) -> None:
    events[event] += duration_secs

  def count(event: str, **_: str | int) -> None:
    events[event] += 1

  jax.monitoring.register_event_duration_secs_listener(add)
  jax.monitoring.register_event_listener(count)
  step = program.compile_step(config, learner, state, mesh)
  end('trace')
  # JAX does not take the two apart, but says what the second took.
  stages['compile'] = events['/jax/core/compile/backend_compile_duration']
  stages['trace'] -= stages['compile']

  with pipeline.batches(dataset, 0, 1, config.data.workers) as batches:
    batch = next(batches)
  end('first batch')
  device_batch = sharding.put_batch(mesh, step.cut(batch))
  jax.block_until_ready(step(state, device_batch, small_schedule(config)))
  end('first step')
  hits = events['/jax/compilation_cache/cache_hits']
  made = {'name': name_of(config, mesh), 'seconds': stages}
  print(json.dumps({**made, 'step_from_cache': hits > 0}))


if __name__ == '__main__':
  from ijepa_jax import errors

  with errors.exit_cleanly():
    main()
