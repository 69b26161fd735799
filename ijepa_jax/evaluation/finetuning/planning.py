"""What a recipe comes to: updates, batch and learning rates of a training."""

import dataclasses
import math
from typing import Any

import numpy as np

from ijepa_jax.evaluation.finetuning.recipe import Recipe

# Settings of a recipe that a plan says better: they depend on the images.
_PLANNED = ('epochs', 'min_steps', 'batch_size', 'lr', 'warmup')


@dataclasses.dataclass(frozen=True)
class Plan:
  """One training on so many images.

  Attributes:
    images: to train on.
    batch_size: images per update, on all devices.
    per_epoch: whole batches in a pass over the images, at least 1.
    steps: updates.
    warmup: those of a rising learning rate, at the beginning; at least 1.
    peak: learning rate at its end.
  """

  images: int
  batch_size: int
  per_epoch: int
  steps: int
  warmup: int
  peak: float

  @property
  def epochs(self) -> float:
    """Passes over the images."""
    return self.steps * self.batch_size / self.images

  def rates(self) -> np.ndarray:
    """Learning rate `(steps,)`: a line from 0, then half a cosine to 0."""
    step = np.arange(self.steps) + 1
    done = (step - self.warmup) / max(1, self.steps - self.warmup)
    fall = 0.5 * (1 + np.cos(math.pi * np.clip(done, 0, 1)))
    return self.peak * np.where(step <= self.warmup, step / self.warmup, fall)

  def __str__(self) -> str:
    return (
      f'{self.steps:,} updates of {self.batch_size:,} images, '
      f'{self.epochs:,.1f} epochs of {self.images:,}, '
      f'peak learning rate {self.peak:.2g}'
    )


def plan(recipe: Recipe, images: int, devices: int) -> Plan:
  """Fits a recipe to the images there are.

  Args:
    recipe: as it was asked for.
    images: to train on.
    devices: that share a batch; it is a multiple of them.
  """
  size = min(recipe.batch_size, images)
  size = max(devices, size - size % devices)
  per_epoch = max(1, images // size)
  steps = max(recipe.min_steps, recipe.epochs * per_epoch)
  return Plan(
    images=images,
    batch_size=size,
    per_epoch=per_epoch,
    steps=steps,
    # One update alone is made at the peak: at the cosine's end it would be 0.
    warmup=max(1, round(recipe.warmup * steps)),
    peak=recipe.lr * size / 256,
  )


def details(recipe: Recipe, made: Plan) -> dict[str, Any]:
  """What ran, for a score's details; `recipe` without what `made` replaces."""
  rest = dataclasses.asdict(recipe)
  for name in _PLANNED:
    del rest[name]
  return {
    'batch': made.batch_size,
    'steps': made.steps,
    'epochs': round(made.epochs, 2),
    'warm-up steps': made.warmup,
    'peak learning rate': made.peak,
    'recipe': rest,
  }
