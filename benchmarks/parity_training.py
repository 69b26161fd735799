"""Compares runs of many updates: `traj_NAME.npz`."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import parity_files
import parity_golden
import parity_models
import parity_report
import parity_schedules

from ijepa_jax import errors, optim, train_step

LOSS = 5e-6
PARAMETERS = 2e-5
# The key bias has no gradient but rounding, of which Adam makes steps: a tenth
# of a step of 1e-3.
KEY_BIAS = 1e-4
GRADIENT_NORM = 2e-5

Step = Callable[[train_step.TrainState, dict, dict], tuple]


class Run(NamedTuple):
  """A run of a golden file.

  Attributes:
    shape: sizes of the model.
    init: parameters before the first update.
    schedules: of the run.
    golden: images and masks, and what is expected.
  """

  shape: parity_golden.Shape
  init: parity_models.Weights
  schedules: optim.Schedules
  golden: parity_files.Arrays


def train(run: Run, step: Step) -> Iterator[tuple[dict, train_step.TrainState]]:
  """Makes every update; yields metrics and state after each.

  Args:
    run: what to train.
    step: `Learner.step` or parts of it, compiled.
  """
  images = run.golden['images_u8']
  masks = list(parity_golden.masks_by_update(run.golden))
  if not 0 < len(masks) == len(images) <= len(run.schedules.lr):
    raise errors.UserError(
      f'{run.golden.path}: masks of {len(masks)} updates, images of '
      f'{len(images)}, a schedule of {len(run.schedules.lr)}'
    )
  # One shape for all updates, padded to the longest.
  length = (
    max(context.shape[-1] for context, _ in masks),
    max(target.shape[-1] for _, target in masks),
  )
  params, ema = jax.tree.map(jnp.array, run.init)
  state = train_step.TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    target=ema,
    opt_state=optim.make_optimizer().init(params),
  )
  for i, (context, target) in enumerate(masks):
    parity_golden.check_masks(
      run.golden.path, run.shape, images[i], context, target
    )
    batch = parity_golden.make_batch(images[i], context, target, length)
    state, metrics = step(state, batch, run.schedules.at(i))
    yield metrics, state


def check_sizes(
  report: parity_report.Report,
  source: str,
  described: Mapping[str, Any],
  shape: parity_golden.Shape,
) -> None:
  """Checks what a trajectory says of its model; names what is not understood.

  Raises:
    UserError: it has other sizes.
  """
  found = {
    'patch_size': shape.patch_size,
    'crop_size': shape.image_size,
    'pred_depth': shape.predictor.depth,
    'pred_emb_dim': shape.predictor.width,
  }
  for name, value in found.items():
    if described.get(name, value) != value:
      raise errors.UserError(
        f'{source}: config_json says {name} {described[name]}, the tensors '
        f'have {value}'
      )
  # A name, the seed of their images and masks, and what the masks show.
  known = {*found, 'model_name', 'seed', 'batch', 'use_bfloat16'}
  if left := parity_report.absent(described, known | parity_schedules.NAMES):
    report.skip(source, f'config_json: {", ".join(left)}', 'not understood')


def parameters(state: train_step.TrainState) -> dict[str, np.ndarray]:
  """All parameters by the reference's names."""
  return parity_golden.to_theirs(
    state.params | {'target_encoder': state.target}
  )


def compare(
  report: parity_report.Report,
  source: str,
  run: Run,
  step: Step,
  final: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
  """Compares losses, parameters on the way, and parameters at the end.

  Args:
    report: takes the rows.
    source: the file.
    run: what to train.
    step: `Learner.step`, compiled.
    final: expected parameters by the name of their row.
  """
  golden = run.golden
  tolerances = PARAMETERS, KEY_BIAS
  marks = {int(n): n for n in golden.prefixes(r'after_step(\d+)/')}
  losses, norms = [], []
  for count, (metrics, state) in enumerate(train(run, step), start=1):
    losses.append(float(metrics['loss']))
    norms.append(float(metrics['grad_norm']))
    if mark := marks.pop(count, ''):
      name = f'after_step{mark}'
      theirs = golden.section(name)
      report.add_tensors(source, name, parameters(state), theirs, tolerances)
  for mark in marks.values():
    report.skip(source, f'after_step{mark}', 'later than the last update')
  last = parameters(state)
  for name, expected in final.items():
    if expected:
      report.add_tensors(source, name, last, expected, tolerances)
    else:
      report.skip(source, name, 'not in the files')
  for name in 'loss', 'loss_f64':
    if name in golden:
      many = f'{name} of {len(losses)} updates'
      report.compare(source, many, np.array(losses), golden[name], LOSS)
    else:
      report.skip(source, name, 'not in the file')
  parts = [f'gnorm_{part}' for part in ('encoder', 'predictor')]
  if not parity_report.absent(parts, golden):
    both = np.hypot(*(golden[part] for part in parts))
    difference = parity_report.relative(norms, both)
    report.add(source, 'norm of gradients', difference, GRADIENT_NORM)
