"""How much fits into the memory of a device, and which mesh to take."""

import copy
import math
import os
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ijepa_jax import errors, resume
from ijepa_jax.accelerators import Accelerator
from ijepa_jax.config import validate
from ijepa_jax.plan.step import Step, device_bytes, make_mesh

# As jaxlib reads them; the second is the old name.
_FRACTIONS = 'XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION'


class Lines(NamedTuple):
  """Bytes of a device beside its state, by images: a line for each moment.

  With few images the worst moment is the update, with many the end of the
  forward pass, so the peak is no straight line.
  """

  fixed: np.ndarray
  per_image: np.ndarray

  def at(self, images: float) -> float:
    """Bytes at the worst moment with so many images."""
    return float((self.fixed + self.per_image * images).max())

  def largest(self, left: float) -> int:
    """Images for which `left` bytes are enough; 0 where there are none."""
    grows = self.per_image > 0
    images = (left - self.fixed[grows]) / self.per_image[grows]
    return max(0, int(images.min())) if self.fixed.max() <= left else 0


def through(a: Step, b: Step) -> Lines:
  """What two steps with different numbers of images have in common.

  Raises:
    ValueError: they are not the same program for another batch.
  """
  if len(a.timeline) != len(b.timeline):
    raise ValueError(f'{a.images} and {b.images} images: other programs')
  first, second = np.array(a.timeline), np.array(b.timeline)
  per_image = (first - second) / (a.images - b.images)
  return Lines(first - per_image * a.images - a.state_bytes, per_image)


def usable_bytes(accelerator: Accelerator) -> float:
  """Memory that a program may have.

  Raises:
    UserError: the environment says something else than a share.
  """
  share = accelerator.usable
  said = {name: text for name in _FRACTIONS if (text := os.environ.get(name))}
  if not accelerator.is_gpu or not said:
    return share * accelerator.memory
  try:
    share = float(next(iter(said.values())))
  except ValueError:
    share = math.nan
  if len(said) > 1 or not 0 < share <= 1:
    raise errors.UserError(
      f'{", ".join(f"{name}={text}" for name, text in said.items())}: '
      'expected one of them, a number in (0, 1]'
    )
  return share * accelerator.memory


def suggest(
  config: ConfigDict, step: Step, lines: Lines, accelerator: Accelerator
) -> str:
  """Arguments for the mesh that needs the least network and fits, in words.

  That is the smallest `mesh.fsdp` on the fast network; where none fits, the
  smallest `optim.accumulate` with the largest of them.

  Args:
    config: the run's config; its `mesh.tensor` stays.
    step: of this config.
    lines: its memory beside the state.
    accelerator: which devices.
  """
  usable = usable_bytes(accelerator)
  devices = math.prod(step.shape)
  images = config.batch_size * step.shape[2] // devices
  possible = {}
  for fsdp in range(1, min(devices, accelerator.near) + 1):
    if held := _held_bytes(config, devices, fsdp, step.shape[2]):
      state, gradients = held
      # Smaller gradients are not counted on: they may not be there yet.
      possible[fsdp] = (
        state + max(0, gradients - step.gradient_bytes),
        gradients,
      )
      if possible[fsdp][0] + lines.at(images) <= usable:
        return f'--config.mesh.fsdp={fsdp} --config.optim.accumulate=1'
  if not possible:
    return 'none: no mesh.fsdp divides devices, batch and parameters'
  fsdp, (state, gradients) = max(possible.items())
  for parts in range(2, images + 1):
    # Of the gradients there is then a sum beside those of a part.
    needed = state + gradients + lines.at(images / parts)
    if images % parts == 0 and needed <= usable:
      return f'--config.mesh.fsdp={fsdp} --config.optim.accumulate={parts}'
  return (
    f'none: with --config.mesh.fsdp={fsdp} a single image does not fit; try '
    '--config.model.remat=full, more devices or larger ones'
  )


def _held_bytes(
  config: ConfigDict, devices: int, fsdp: int, tensor: int
) -> tuple[int, int] | None:
  """State and gradients of a device, or None where a mesh is not possible."""
  changed = copy.deepcopy(config).unlock()
  changed.mesh.update({'data': -1, 'fsdp': fsdp, 'tensor': tensor})
  changed.optim.accumulate = 1
  try:
    validate.validate(changed, devices)
    state = resume.abstract_state(changed, make_mesh(changed, devices))
  except errors.UserError:
    return None
  return device_bytes(state), device_bytes(state.params)
