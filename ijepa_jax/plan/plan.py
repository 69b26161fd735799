"""The plan of one config on one mesh, as numbers and as a table."""

import collections
import copy
import dataclasses
import math
from typing import Any

from ml_collections import ConfigDict

from ijepa_jax import optim
from ijepa_jax.benchmark import report
from ijepa_jax.config.mesh import AXES
from ijepa_jax.plan import fit, measured, predict
from ijepa_jax.plan.predict import Assumed
from ijepa_jax.plan.step import Step, compile_step

# Training images of the data sets whose name tells.
IMAGES = {'tfds:imagenet2012': 1_281_167}

LEFT_OUT = """\
left out: input pipeline, evaluation, checkpoints, start and restarts; latency
and overlap of collectives; what XLA's backend keeps beside the program's
arrays; congestion. Matrix products and bytes are counted, times are not
measured."""


def prepare(config: ConfigDict) -> tuple[ConfigDict, list[str]]:
  """The config as it would be on an accelerator, and what was changed."""
  config = copy.deepcopy(config).unlock()
  notes = []
  if config.model.dtype == 'auto':
    config.model.dtype = 'bfloat16'
  if config.model.attention == 'cudnn':
    config.model.attention = 'xla'
    notes.append(
      'cudnn attention cannot be compiled here: planned with xla, which keeps '
      'the (N, N) weights for the backward pass, so memory is overestimated'
    )
  if config.model.target_buckets > 1:
    notes.append(
      'planned is the program for the longest targets, and as if all were: '
      'model.target_buckets makes the mean step shorter'
    )
  return config.lock(), notes


def make(config: ConfigDict, devices: int, assumed: Assumed) -> dict[str, Any]:
  """Plans a run.

  Args:
    config: from `prepare`.
    devices: of all hosts.
    assumed: accelerator, utilisation, training images.

  Returns:
    Ready for JSON; bytes, seconds and counts of one device and one step.

  Raises:
    UserError: the config does not fit the devices.
  """
  accelerator = assumed.accelerator
  step = compile_step(config, devices, accelerator.near)
  other = compile_step(_doubled(config), devices, accelerator.near)
  lines = fit.through(step, other)
  usable = fit.usable_bytes(accelerator)
  return {
    **of_step(config, step, assumed),
    'usable_bytes': usable,
    'largest_images': lines.largest(usable - step.state_bytes),
    'suggestion': fit.suggest(config, step, lines, accelerator),
    'collectives': _by_kind(step),
    'measured': [x._asdict() for x in measured.find(accelerator)],
  }


def of_step(config: ConfigDict, step: Step, assumed: Assumed) -> dict[str, Any]:
  """What follows from one compiled step; ready for JSON."""
  time = predict.seconds(step, assumed)
  devices = math.prod(step.shape)
  updates = _updates(config, assumed.images)
  hours = None if updates is None else updates * time.step / 3600
  held = step.state_bytes + step.gradient_bytes
  return {
    'devices': devices,
    'mesh': dict(zip(AXES, step.shape)),
    'images': step.images,
    'state_bytes': step.state_bytes,
    'gradient_bytes': step.gradient_bytes,
    'activation_bytes': step.peak_bytes - held,
    'peak_bytes': step.peak_bytes,
    'fits': step.peak_bytes <= fit.usable_bytes(assumed.accelerator),
    'flops': step.flops,
    'sent_bytes': sum(x.sent for x in step.collectives),
    'far_bytes': sum(x.sent for x in step.collectives if predict.is_far(x)),
    'seconds': dataclasses.asdict(time)
    | {'step': time.step, 'overlapped': time.overlapped},
    'binds': time.binds,
    'images_per_second': config.batch_size / time.step,
    'updates': updates,
    'days': hours and hours / 24,
    'device_hours': hours and hours * devices,
  }


def _doubled(config: ConfigDict) -> ConfigDict:
  """The config with twice as many images on each device."""
  config = copy.deepcopy(config).unlock()
  config.batch_size *= 2
  return config.lock()


def _updates(config: ConfigDict, images: int | None) -> int | None:
  if config.total_steps is None and images is None:
    return None
  per_epoch = optim.steps_per_epoch(images or 0, config.batch_size)
  return optim.total_steps(config, per_epoch)


def _by_kind(step: Step) -> dict[str, dict[str, float]]:
  kinds: dict[str, dict[str, float]] = collections.defaultdict(
    lambda: {'count': 0, 'sent_bytes': 0.0}
  )
  for x in step.collectives:
    kinds[x.kind]['count'] += x.times
    kinds[x.kind]['sent_bytes'] += x.sent
  return dict(kinds)


def table(plan: dict[str, Any], assumed: Assumed) -> str:
  """The result of `make` for people."""
  seconds = plan['seconds']
  mesh = ' x '.join(f'{axis} {size}' for axis, size in plan['mesh'].items())
  fits = 'fits' if plan['fits'] else 'DOES NOT FIT'
  kinds = ', '.join(
    f'{kind} {report.size(x["sent_bytes"])}'
    for kind, x in plan['collectives'].items()
  )
  rows = [
    ('images per device', str(plan['images']), 'at a time'),
    (
      'state',
      report.size(plan['state_bytes']),
      'parameters, target encoder, Adam moments',
    ),
    ('gradients', report.size(plan['gradient_bytes'])),
    (
      'activations',
      report.size(plan['activation_bytes']),
      'and all else that is there at the worst moment',
    ),
    (
      'peak',
      report.size(plan['peak_bytes']),
      f'{fits} in {report.size(plan["usable_bytes"])}',
    ),
    (
      'largest batch',
      str(plan['largest_images']),
      'images per device that fit',
    ),
    ('matrix products', f'{report.number(plan["flops"] / 1e12)} TFLOP'),
    (
      'sent',
      report.size(plan['sent_bytes']),
      f'between hosts {report.size(plan["far_bytes"])}; {kinds or "nothing"}',
    ),
    (
      'compute',
      report.seconds(seconds['compute']),
      f'at {assumed.utilisation:.0%} of the peak rate (--utilisation)',
    ),
    ('memory', report.seconds(seconds['memory'])),
    ('network', report.seconds(seconds['network'])),
    (
      'step',
      report.seconds(seconds['step']),
      f'{plan["binds"]} binds; with everything overlapped '
      f'{report.seconds(seconds["overlapped"])}',
    ),
    ('images/s', report.number(plan['images_per_second'])),
  ]
  if plan['days'] is None:
    rows.append(('run', 'unknown', 'give the training images: --images=N'))
  else:
    rows.append(
      (
        'run',
        f'{report.number(plan["days"])} days',
        f'of {plan["updates"]:,} updates, '
        f'{report.number(plan["device_hours"])} device hours',
      )
    )
  return '\n'.join(
    (
      f'plan: {plan["devices"]} {assumed.name}, {mesh}',
      report.columns(rows),
      f'suggested: {plan["suggestion"]}',
      _comparison(plan, assumed),
    )
  )


def _comparison(plan: dict[str, Any], assumed: Assumed) -> str:
  """What the same kind of device was measured to reach."""
  if not plan['measured']:
    return f'measured: nothing in benchmarks/results/ is of {assumed.name}'
  return '\n'.join(
    f'measured: {x["utilisation"]:.0%} of the peak rate without padding, '
    f'assumed {assumed.utilisation:.0%} with it: {x["name"]} ({x["file"]})'
    for x in plan['measured']
  )
