"""Speed of the training step, what it costs, and how much memory it takes."""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ijepa_jax import accelerators, program
from ijepa_jax.benchmark import host, record, report
from ijepa_jax.benchmark.trial import Trial, peak_bytes
from ijepa_jax.data import masks

# Batches of masks, and images in each, for the mean numbers of valid tokens.
# Block sizes are drawn per batch, so it is the batches that must be many.
_MASK_BATCHES, _MASK_IMAGES = 1000, 64


def measure(
  config: ConfigDict,
  *,
  warmup: int = 2,
  steps: int = 50,
  seconds: float = 30.0,
) -> dict[str, Any]:
  """Times the training step of a config.

  Args:
    config: the run's config, resolved.
    warmup: steps before those that count.
    steps: that count, at most.
    seconds: stop when they have passed, but not before a few steps.

  Returns:
    Ready for JSON. `images_per_second` and `seconds_per_step` with median and
    quartiles; `model_tflops_per_second` by the analytic count, where padding
    is no work; `utilisation`, or None where the device's peak is not known;
    `tokens`, valid (mean) and padded; `peak_memory_bytes` of a device and its
    `peak_memory_source`; `host_seconds_per_step`, of which nothing waits for
    the device: to fetch a batch that is ready, to hand it over, to start the
    step, and to log; `xla_cost`; `compile_seconds`.

  Raises:
    UserError: the config cannot run on these devices.
  """
  trial = Trial(config)
  return measure_trial(trial, warmup=warmup, steps=steps, seconds=seconds)


def measure_trial(
  trial: Trial, *, warmup: int = 2, steps: int = 50, seconds: float = 30.0
) -> dict[str, Any]:
  """`measure` for a step that is compiled."""
  config = trial.config
  timed = trial.run(warmup=warmup, steps=steps, seconds=seconds)
  rate = record.spread([config.batch_size / x for x in timed.steps])
  tokens, flops = _useful(config, trial.spec)
  peak = accelerators.peak_flops(jax.devices()[0].device_kind)
  rate_flops = flops * rate['median']
  cost = trial.compiled.largest.cost_analysis() or {}
  batch = trial.batch()
  return {
    'name': trial.name,
    'batch_size': config.batch_size,
    'images_per_second': rate,
    'seconds_per_step': record.spread(timed.steps),
    'model_gflops_per_image': flops / 1e9,
    'model_tflops_per_second': rate_flops / 1e12,
    'utilisation': peak and rate_flops / (peak * jax.device_count()),
    'tokens': tokens,
    'host_seconds_per_step': {
      'put_batch': record.spread(timed.put),
      'dispatch': record.spread(timed.dispatch),
      'fetch_batch': host.fetch(batch, config.data.workers),
      'log': host.log(config, {'loss': trial.loss}, batch),
    },
    **_memory(trial),
    'state': _state(trial),
    'xla_cost': {
      'flops': cost.get('flops'),
      'bytes': cost.get('bytes accessed'),
      # XLA does not multiply the body of a loop by its number of turns.
      'loops_counted_once': not config.model.unroll
      or config.optim.accumulate > 1,
    },
    'compile_seconds': trial.compile_seconds,
    'loss': trial.loss,
  }


def table(result: dict[str, Any]) -> str:
  """The result of `measure` for people."""
  rate, step = result['images_per_second'], result['seconds_per_step']
  host_seconds, cost = result['host_seconds_per_step'], result['xla_cost']
  share = result['utilisation']
  once = ', loops counted once' if cost['loops_counted_once'] else ''

  def tokens(name: str) -> str:
    values = result['tokens'][name]
    return f'{values["valid"]:.1f} of {values["padded"]:g}'

  rows = [
    (
      'images/s',
      report.number(rate['median']),
      f'quartiles {report.quartiles(rate)}, {rate["count"]} steps',
    ),
    ('step', report.seconds(step['median'])),
    (
      'model',
      f'{report.number(result["model_tflops_per_second"])} TFLOP/s',
      f'at {report.number(result["model_gflops_per_image"])} GFLOP per image',
    ),
    ('utilisation', f'{share:.1%}')
    if share
    else ('utilisation', 'unknown', 'like the peak of this device'),
    ('context tokens', tokens('context'), 'mean valid of padded'),
    ('target tokens', tokens('target'), 'of one block'),
    *(
      (f'host, {name}'.replace('_', ' '), report.seconds(spread['median']))
      for name, spread in host_seconds.items()
    ),
    (
      'peak memory',
      report.size(result['peak_memory_bytes']),
      f'says {result["peak_memory_source"]}',
    ),
    (
      'state',
      report.size(
        result['state']['trained_bytes'] + result['state']['target_bytes']
      ),
    ),
    (
      'XLA counts',
      f'{report.number((cost["flops"] or 0) / 1e9)} GFLOP',
      f'and {report.size(cost["bytes"] or 0)} moved per step{once}',
    ),
    ('trace, compile', report.seconds(result['compile_seconds'])),
  ]
  return f'step: {result["name"]}\n{report.columns(rows)}'


def _useful(
  config: ConfigDict, spec: masks.MaskSpec
) -> tuple[dict[str, Any], float]:
  """Tokens of a context and a target, and useful operations of an image.

  Means over many batches, and not over the few that were timed: a program
  takes the same time whatever its masks are.
  """
  lengths: dict[str, list[float]] = {'context': [], 'target': []}
  buckets = program.target_lengths(config)
  padded, flops = [], []
  for step in range(_MASK_BATCHES):
    drawn = masks.sample_masks(spec, config.seed, step, _MASK_IMAGES)
    batch = {
      'context_length': drawn.context_length,
      'target_length': drawn.target_length,
    }
    flops.append(program.useful_flops(config, batch) / config.batch_size)
    for name, values in lengths.items():
      values.append(float(batch[f'{name}_length'].mean()))
    padded.append(masks.padded_length(buckets, int(drawn.target_length[0])))
  means = {'context': spec.context_tokens, 'target': float(np.mean(padded))}
  tokens = {
    name: {'valid': float(np.mean(values)), 'padded': means[name]}
    for name, values in lengths.items()
  }
  return tokens, float(np.mean(flops))


def _memory(trial: Trial) -> dict[str, Any]:
  """Peak bytes on one device, and who says so."""
  plan: Any = trial.compiled.largest.memory_analysis()
  compiled = (
    plan.argument_size_in_bytes
    + plan.output_size_in_bytes
    - plan.alias_size_in_bytes
    + plan.temp_size_in_bytes
  )
  peak, source = compiled, "XLA's plan of the compiled step"
  now = peak_bytes()
  # The device keeps the peak of the whole process: it is ours if it rose.
  if now is not None and now > (trial.peak_before or 0):
    peak, source = now, 'the device'
  return {
    'peak_memory_bytes': peak,
    'peak_memory_source': source,
    'compiled_memory_bytes': compiled,
  }


def _state(trial: Trial) -> dict[str, Any]:
  """Bytes of the state, all devices' copies counted once."""

  def total(tree: Any, what: str) -> int:
    return sum(getattr(leaf, what) for leaf in jax.tree.leaves(tree))

  return {
    'trained_parameters': total(trial.state.params, 'size'),
    'target_parameters': total(trial.state.target, 'size'),
    'trained_bytes': total(
      (trial.state.params, trial.state.opt_state), 'nbytes'
    ),
    'target_bytes': total(trial.state.target, 'nbytes'),
  }
