"""What a checkpoint says of how it was trained, as far as pictures need it."""

import ml_collections
from etils import epath

from ijepa_jax import checkpoint_files, errors
from ijepa_jax.config import fields, validate
from ijepa_jax.data import masks, pipeline
from ijepa_jax.interop.weights import Architecture


def folder_of_run(checkpoint: str) -> epath.Path | None:
  """The run's directory that a checkpoint lies in, if it lies in one."""
  found = checkpoint_files.find(checkpoint)
  if found is None or found.parent.name != checkpoint_files.FOLDER:
    return None
  return found.parent.parent


def config_of(checkpoint: str) -> ml_collections.ConfigDict | None:
  """The config of the run that a checkpoint is of, or None."""
  found = checkpoint_files.find(checkpoint)
  if found is None:
    return None
  said = checkpoint_files.State(found).meta.section('config').values
  if not said:
    return None
  config = fields.defaults()
  for name, value in fields.flatten(said).items():
    if name in fields.FIELDS:  # fields come and go between versions
      value = tuple(value) if isinstance(value, list) else value
      fields.find(name).check(value)
      fields.assign(config, name, value)
  return config


def mask_spec(
  config: ml_collections.ConfigDict | None, architecture: Architecture
) -> masks.MaskSpec:
  """The run's masks, or those of the published recipes.

  Args:
    config: of the run, if there is one.
    architecture: says how many patches there are otherwise.

  Raises:
    UserError: images of so few patches have no target blocks.
  """
  if config is not None:
    return pipeline.mask_spec(config)
  config = fields.defaults()
  config.model.patch_size = architecture.patch_size
  config.model.image_size = architecture.image_size
  smallest = min(
    height * width
    for height, width in masks.block_sizes(
      architecture.grid,
      config.mask.target_scale,
      config.mask.target_aspect,
      config.mask.bounds,
    )
  )
  if not smallest:
    raise errors.UserError(
      f'images of {architecture.grid} x {architecture.grid} patches are too '
      "small for the published recipes' target blocks"
    )
  config.mask.min_keep = min(config.mask.min_keep, smallest - 1)
  return pipeline.mask_spec(validate.resolve(config))
