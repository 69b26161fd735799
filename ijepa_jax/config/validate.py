"""Checks a config by arithmetic alone, before any work is done.

What needs the disk is checked where it is opened: data paths by
`data.sources`, `init_from` by `checkpoint`. The exception are the libraries
that `data.decode` needs: training would start without them.
"""

import copy
import math

from ml_collections import ConfigDict

from ijepa_jax import errors
from ijepa_jax.config import fields, mesh
from ijepa_jax.data import fast_jpeg, masks
from ijepa_jax.models import sizes


def validate(config: ConfigDict, num_devices: int | None = None) -> None:
  """Refuses a config that cannot work.

  Args:
    config: what a config file and the command line made of the defaults.
    num_devices: devices of all hosts together; None: not known yet, so only
      what holds for any number is checked.

  Raises:
    UserError: one line with the first offending field, its value, what is
      expected, and the nearest valid choice.
  """
  check_names(config)
  for name, value in fields.flatten(config.to_dict()).items():
    fields.find(name).check(value)
  _check_patches(config)
  _check_targets(config)
  _check_context(config)
  _check_predictor(config)
  _check_periods(config)
  fast_jpeg.require(config.data.decode)
  _check_devices(config, num_devices)
  if config.total_steps is None:
    check_warmup(config, config.total_epochs)


def check_names(config: ConfigDict) -> None:
  """Raises a UserError unless `config` has exactly the known fields."""
  names = fields.flatten(config.to_dict())
  for name in names:
    fields.find(name)
  for name in fields.FIELDS:
    if name not in names:
      raise errors.UserError(
        f'{name}: missing from the config; start from fields.defaults()'
      )


def check_warmup(config: ConfigDict, epochs: float) -> None:
  """Refuses a warm-up longer than the run.

  Args:
    config: a config whose fields have been checked.
    epochs: length of the run. Where `total_steps` sets it, it is known only
      when the data set has been opened.
  """
  if config.optim.warmup_epochs > epochs:
    raise errors.UserError(
      f'optim.warmup_epochs={config.optim.warmup_epochs}: longer than the '
      f'run of {epochs:g} epochs; nearest: {epochs:g}'
    )


def resolve(config: ConfigDict) -> ConfigDict:
  """Fills in the unset fields that follow from others.

  A run stores the result, and so keeps its shapes whatever later versions
  choose by default. A field whose None means 'off' stays unset.

  Args:
    config: a valid config, not changed.

  Returns:
    A copy with the predictor's heads and the mask's numbers of tokens set.
  """
  config = copy.deepcopy(config)
  mask, grid = config.mask, _grid(config)
  config.predictor.heads = _predictor_heads(config)
  mask.target_tokens = mask.target_tokens or masks.default_target_tokens(
    grid, mask.target_scale, mask.target_aspect, mask.bounds
  )
  mask.context_tokens = mask.context_tokens or min(
    masks.default_context_tokens(masks.MaskSpec(grid, **mask)),
    _largest_context(config),  # the default is even, this may be odd
  )
  return config


def _grid(config: ConfigDict) -> int:
  """Patches per side of the image."""
  return config.model.image_size // config.model.patch_size


def _check_patches(config: ConfigDict) -> None:
  image, patch = config.model.image_size, config.model.patch_size
  if image % patch:
    raise errors.UserError(
      f'model.image_size={image}: expected a multiple of '
      f'model.patch_size={patch}; nearest: {_multiples_near(image, patch)}'
    )


def _check_targets(config: ConfigDict) -> None:
  grid, mask = _grid(config), config.mask
  areas = [height * width for height, width in _target_sizes(config)]
  if min(areas) == 0:
    raise errors.UserError(
      f'mask.target_scale={mask.target_scale}: a target can be empty on '
      f'{grid}x{grid} patches; expected larger targets, or more patches by a '
      f'smaller model.patch_size than {config.model.patch_size}'
    )
  if min(areas) <= mask.min_keep:
    raise errors.UserError(
      f'mask.min_keep={mask.min_keep}: the smallest target block has only '
      f'{min(areas)} of {grid}x{grid} patches, expected more than min_keep; '
      f'nearest: {min(areas) - 1}'
    )
  if mask.target_tokens and mask.target_tokens < max(areas):
    raise errors.UserError(
      f'mask.target_tokens={mask.target_tokens}: the largest target block '
      f'has {max(areas)} patches; nearest: {max(areas)}'
    )


def _check_context(config: ConfigDict) -> None:
  grid, mask = _grid(config), config.mask
  largest = _largest_context(config)
  if largest <= mask.min_keep:
    raise errors.UserError(
      f'mask.context_scale={mask.context_scale}: beside a target the largest '
      f'context has only {largest} of {grid}x{grid} patches, expected more '
      f'than mask.min_keep={mask.min_keep}'
    )
  tokens = mask.context_tokens
  if tokens and not mask.min_keep < tokens <= largest:
    nearest = min(max(tokens, mask.min_keep + 1), largest)
    raise errors.UserError(
      f'mask.context_tokens={tokens}: contexts have between '
      f'{mask.min_keep + 1} (mask.min_keep + 1) and {largest} of '
      f'{grid}x{grid} patches; nearest: {nearest}'
    )


def _target_sizes(config: ConfigDict) -> frozenset[tuple[int, int]]:
  mask = config.mask
  return masks.block_sizes(
    _grid(config), mask.target_scale, mask.target_aspect, mask.bounds
  )


def _largest_context(config: ConfigDict) -> int:
  """Patches left of the largest context block by the smallest cut.

  That is one target, because targets may cover each other, pushed as far out
  of the context block as their sizes allow.
  """
  grid, mask = _grid(config), config.mask
  reach = grid if mask.bounds == 'full' else grid - 1
  contexts = masks.block_sizes(
    grid, mask.context_scale, (1.0, 1.0), mask.bounds
  )
  return max(
    height * width
    - max(0, height + target_height - reach)
    * max(0, width + target_width - reach)
    for height, width in contexts
    for target_height, target_width in _target_sizes(config)
  )


def _check_predictor(config: ConfigDict) -> None:
  width, heads = config.predictor.width, _predictor_heads(config)
  # A quarter each for the sine and cosine of row and column.
  unit = math.lcm(heads, 4)
  if width % unit:
    raise errors.UserError(
      f'predictor.width={width}: expected a multiple of 4 and of '
      f'predictor.heads={heads}; nearest: {_multiples_near(width, unit)}'
    )


def _predictor_heads(config: ConfigDict) -> int:
  return config.predictor.heads or sizes.SIZES[config.model.variant].heads


def _check_periods(config: ConfigDict) -> None:
  every, period = config.checkpoint.every, config.checkpoint.keep_period
  if period and period % every:
    raise errors.UserError(
      f'checkpoint.keep_period={period}: expected a multiple of '
      f'checkpoint.every={every}; nearest: {_multiples_near(period, every)}'
    )


def _check_devices(config: ConfigDict, num_devices: int | None) -> None:
  """Checks the mesh, and that heads and batch divide over it."""
  data, fsdp, tensor = mesh.shape(config.mesh, num_devices)
  encoder = sizes.SIZES[config.model.variant].heads
  for name, heads in (
    (f'heads of model.variant={config.model.variant}', encoder),
    ('predictor.heads', _predictor_heads(config)),
  ):
    if heads % tensor:
      raise errors.UserError(
        f'mesh.tensor={tensor}: expected a divisor of the {heads} {name}; '
        f'nearest: {mesh.nearest_divisor(tensor, heads)}'
      )
  unit = data * fsdp * config.optim.accumulate
  if config.batch_size % unit:
    raise errors.UserError(
      f'batch_size={config.batch_size}: expected a multiple of {data * fsdp} '
      'devices (mesh.data x mesh.fsdp) x '
      f'optim.accumulate={config.optim.accumulate}; nearest: '
      f'{_multiples_near(config.batch_size, unit)}'
    )


def _multiples_near(value: int, unit: int) -> str:
  """The multiples of `unit` around `value`, as '208 or 224'."""
  below = value // unit * unit
  return f'{below} or {below + unit}' if below else f'{unit}'
