"""Compares the schedules of learning rate, weight decay and momentum."""

import pathlib
import runpy
from collections.abc import Mapping
from typing import Any

import numpy as np
import parity_report

from ijepa_jax import errors, optim
from ijepa_jax.config import fields

HOST = 1e-9  # relative, of the float64 schedules
STEP = 1e-6  # relative, of what the compiled step is given
# Below this share of the largest value, relative differences are of rounding:
# the end of a cosine that falls to zero, 1 - momentum near 1.
_FLOOR = 1e-6

# The reference's configs: ours, and steps per epoch with its batch size.
PUBLISHED = {
  'in1k_vith14_ep300': ('vith14', 625),
  'in1k_vith16-448_ep300': ('vith16_448', 625),
  'in22k_vith14_ep66': ('vith14_in22k', 6932),
  'in22k_vitg16_ep44': ('vitg16_in22k', 6932),
}
_CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'

# A schedule in the reference's words. Lengths go by two names; both may be
# there, and then they agree.
_LENGTHS = (('iterations_per_epoch', 'ipe'), ('num_epochs', 'epochs'))
_FIELDS = {
  'warmup': 'optim.warmup_epochs',
  'start_lr': 'optim.start_lr',
  'ref_lr': 'optim.lr',
  'final_lr': 'optim.final_lr',
  'wd': 'optim.weight_decay',
  'final_wd': 'optim.final_weight_decay',
  'ipe_scale': 'optim.schedule_scale',
}
# All names that describe a schedule.
NAMES = {*_FIELDS, 'ema', *_LENGTHS[0], *_LENGTHS[1]}


def published(name: str) -> optim.Schedules:
  """Schedules of one of the reference's configs."""
  ours, steps_per_epoch = PUBLISHED[name]
  config = runpy.run_path(str(_CONFIGS / f'{ours}.py'))['get_config']()
  return optim.make_schedules(config, steps_per_epoch)


def is_described(described: Any) -> bool:
  """Whether this is a schedule in the reference's words."""
  return isinstance(described, Mapping) and 'ref_lr' in described


def make_schedules(described: Mapping[str, Any], path: Any) -> optim.Schedules:
  """Schedules that are described in the reference's words.

  Args:
    described: such as a trajectory's `config_json`.
    path: of the file, for messages.

  Raises:
    UserError: a value is missing or no number, or two disagree.
  """
  lengths: list[Any] = []
  for synonyms in _LENGTHS:
    found = {described[name] for name in synonyms if name in described}
    if len(found) != 1:
      raise errors.UserError(
        f'{path}: expected one value of {" and ".join(synonyms)}, found '
        f'{sorted(found) or "none"}'
      )
    lengths += found
  missing = parity_report.absent([*_FIELDS, 'ema'], described)
  if missing:
    raise errors.UserError(f'{path}: the schedule lacks {", ".join(missing)}')
  config = fields.defaults()
  try:
    steps_per_epoch, config.total_epochs = (int(x) for x in lengths)
    for theirs, ours in _FIELDS.items():
      fields.assign(config, ours, float(described[theirs]))
    start, end = described['ema']
    config.optim.ema, config.optim.final_ema = float(start), float(end)
  except (TypeError, ValueError) as error:
    raise errors.UserError(f'{path}: broken schedule: {error}') from error
  return optim.make_schedules(config, steps_per_epoch)


def compare(
  report: parity_report.Report,
  source: str,
  schedules: optim.Schedules,
  theirs: Mapping[str, np.ndarray],
) -> None:
  """Compares schedules at updates `idx`, or at the first ones.

  Args:
    report: takes the rows.
    source: the file.
    schedules: ours.
    theirs: `lr`, `wd`, `momentum`, and `idx` or none.
  """
  for key, field, ours in (
    ('lr', 'lr', schedules.lr),
    ('wd', 'weight_decay', schedules.weight_decay),
    ('momentum', 'one_minus_momentum', schedules.momentum),
  ):
    if key not in theirs:
      report.skip(source, key, 'not in the file')
      continue
    expected = np.asarray(theirs[key])
    updates = np.arange(len(expected))
    if 'idx' in theirs:
      updates = np.asarray(theirs['idx'])
    if updates.shape != expected.shape or updates.max() >= len(ours):
      raise errors.UserError(
        f'{source}: {len(expected)} values of {key} for {len(updates)} updates '
        f'up to number {updates.max()}; the run has {len(ours)}'
      )
    difference = parity_report.relative(ours[updates], expected, _FLOOR)
    report.add(source, key, difference, HOST)
    if key == 'momentum':  # in float32 it is 1 at the end
      expected = 1 - expected
    given = [schedules.at(int(i))[field] for i in updates]
    difference = parity_report.relative(given, expected, _FLOOR)
    report.add(source, f'{field} in the step', difference, STEP)
