"""How fast an accelerator is at our training step: tasks of `gpu_check.py`."""

import functools
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import gpu_tasks
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ijepa_jax import program, sharding, train_step
from ijepa_jax.benchmark import record, step, trial

# When this process was started, in Unix seconds; the parent says.
STARTED = 'IJEPA_GPU_CHECK_STARTED'


# --- The card --------------------------------------------------------------


def device(smoke: bool, earlier: gpu_tasks.Earlier) -> gpu_tasks.Result:
  """Which device it is; a failure unless it is a GPU."""
  del earlier
  first = jax.devices()[0]
  memory = (first.memory_stats() or {}).get('bytes_limit')
  values = {
    'machine': record.machine(),
    'versions': record.versions(),
    'backend': first.client.platform_version,
    'memory_for_jax_bytes': memory,
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
  }
  good = smoke or jax.default_backend() == 'gpu'
  note = first.device_kind if good else f'{first.device_kind} is no GPU'
  return gpu_tasks.MEASURED if good else gpu_tasks.FAIL, note, values


def matrix_rate(
  shapes: Sequence[tuple[int, int, int]], earlier: gpu_tasks.Earlier
) -> gpu_tasks.Result:
  """TFLOP/s of bfloat16 matrix products `(m, k, n)`; the first one counts."""
  del earlier
  multiply = jax.jit(jnp.matmul)
  rates = {}
  for m, k, n in shapes:
    a, b = (
      jax.random.normal(jax.random.key(i), shape, jnp.bfloat16)
      for i, shape in enumerate(((m, k), (k, n)))
    )
    seconds = _seconds(functools.partial(multiply, a, b))
    rates[f'{m} x {k} x {n}'] = 2 * m * k * n / seconds / 1e12
  note = ', '.join(f'{name}: {x:.4g}' for name, x in rates.items())
  values = {'tflops_per_second': next(iter(rates.values())), 'rates': rates}
  return gpu_tasks.MEASURED, f'TFLOP/s of {note}', values


def copy_rate(count: int, earlier: gpu_tasks.Earlier) -> gpu_tasks.Result:
  """TB/s of `x + 1` over `count` float32, bytes read and written."""
  del earlier
  x = jnp.zeros(count, jnp.float32)
  add = jax.jit(lambda x: x + 1)
  rate = 8 * count / _seconds(lambda: add(x)) / 1e12
  host = np.zeros(count // 16, np.float32)
  hand_over = 4 * host.size / _seconds(lambda: jax.device_put(host)) / 1e9
  values = {
    'tb_per_second': rate,
    'host_to_device_gb_per_second': hand_over,
  }
  note = f'TB/s: {rate:.3g}; from the host, GB/s: {hand_over:.3g}'
  return gpu_tasks.MEASURED, note, values


def _seconds(
  call: Callable[[], jax.Array], repeats: int = 5, calls: int = 20
) -> float:
  """Median time of a call, many of them under way at once."""
  jax.block_until_ready(call())
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    for _ in range(calls):
      result = call()
    jax.block_until_ready(result)
    times.append((time.perf_counter() - start) / calls)
  return statistics.median(times)


# --- The training step -----------------------------------------------------


def training_step(
  config: ConfigDict,
  steps: int,
  seconds: float,
  earlier: gpu_tasks.Earlier,
) -> gpu_tasks.Result:
  """All that `ijepa_jax.benchmark step` measures, and the first step."""
  if skipped := gpu_tasks.lacks_cudnn(config.model.attention):
    return skipped
  ours, first = _start(config)
  values: dict[str, Any] = first | step.measure_trial(
    ours, warmup=2, steps=steps, seconds=seconds
  )
  host = values['host_seconds_per_step']
  values['host_ms'] = 1e3 * sum(host[name]['median'] for name in host)
  rate = earlier.get('matrix rate')
  if rate and 'tflops_per_second' in rate.values:
    values['share_of_matrix_rate'] = (
      values['model_tflops_per_second'] / rate.values['tflops_per_second']
    )
  note = f'{values["images_per_second"]["median"]:,.4g} images/s'
  return gpu_tasks.MEASURED, note, values


def start_again(
  config: ConfigDict, earlier: gpu_tasks.Earlier
) -> gpu_tasks.Result:
  """Time to the first step where the compiled step is in JAX's cache."""
  del earlier
  if skipped := gpu_tasks.lacks_cudnn(config.model.attention):
    return skipped
  _, values = _start(config)
  note = f'first step after {values["to_first_step_seconds"]:.1f} s'
  return gpu_tasks.MEASURED, note, values


def _start(config: ConfigDict) -> tuple[trial.Trial, dict[str, Any]]:
  """A trial after its first step, and how long that took."""
  # Only the first task of a process knows how long a start takes.
  started = os.environ.pop(STARTED, None)
  ours = trial.Trial(config)
  timed = ours.run(steps=1)
  return ours, {
    'compile_seconds': ours.compile_seconds,
    'first_step_seconds': timed.steps[0],
    'to_first_step_seconds': started and time.time() - float(started),
  }


# --- Memory ----------------------------------------------------------------


def planned_memory(
  config: ConfigDict, earlier: gpu_tasks.Earlier
) -> gpu_tasks.Result:
  """Bytes that the compiled step will take; nothing runs, nothing is made.

  Where the step does not fit, XLA already recomputes some of it on its own to
  come down to the device's memory, and the figure is what it came down to.
  """
  del earlier
  if skipped := gpu_tasks.lacks_cudnn(config.model.attention):
    return skipped
  mesh = sharding.make_mesh(config)
  shapes = jax.eval_shape(lambda: train_step.init_state(config))
  state = jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    shapes,
    sharding.state_shardings(mesh, shapes),
  )
  learner = train_step.Learner(config, sharding.constrain(mesh))
  step = program.compile_step(config, learner, state, mesh)
  plan = step.largest.memory_analysis()
  assert plan is not None
  total = (
    plan.argument_size_in_bytes
    + plan.output_size_in_bytes
    - plan.alias_size_in_bytes
    + plan.temp_size_in_bytes
  )
  values = {
    'batch_size': config.batch_size,
    'remat': config.model.remat,
    'attention': config.model.attention,
    'bytes': total,
    'arguments_bytes': plan.argument_size_in_bytes,
    'temporary_bytes': plan.temp_size_in_bytes,
  }
  return gpu_tasks.MEASURED, f'{total / 1e9:.4g} GB', values


# --- The reference ---------------------------------------------------------


def reference(
  command: Sequence[str], earlier: gpu_tasks.Earlier
) -> gpu_tasks.Result:
  """The authors' code on the same card; the last line it prints is JSON.

  This process must not have touched the device: JAX would hold its memory.
  """
  del earlier
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
  lines = done.stdout.strip().splitlines()
  if done.returncode or not lines:
    note = f'exit code {done.returncode}, {lines[-1] if lines else "no output"}'
    return gpu_tasks.UNSUPPORTED, note, {'command': list(command)}
  values = json.loads(lines[-1])
  rate = float(values['images_per_second'])
  values = {'command': list(command), **values, 'images_per_second': rate}
  return gpu_tasks.MEASURED, f'images/s: {rate:,.4g}', values
