"""Small models and batches that several test files use."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
import parity_files
import parity_golden
import parity_models
import parity_report
import pytest
from flax import nnx

from ijepa_jax import train_step
from ijepa_jax.config import fields
from ijepa_jax.data import masks
from ijepa_jax.models import sizes

GOLDEN = pathlib.Path(__file__).parent / 'golden'

jit = parity_models.jit


@pytest.fixture(scope='module', autouse=True)
def golden_size() -> Iterator[None]:
  """Registers the size of the golden numbers (golden/README.md)."""
  with pytest.MonkeyPatch.context() as patch:
    size = sizes.Size(width=48, depth=2, heads=3)
    patch.setitem(sizes.SIZES, 'golden', size)
    # Compiles faster, where the depth is not what is tested.
    patch.setitem(sizes.SIZES, 'shallow', dataclasses.replace(size, depth=1))
    yield


def config(changes: dict[str, Any] | None = None) -> ml_collections.ConfigDict:
  """The defaults on a 6x6 grid with a tiny predictor, and `changes`."""
  small = {
    'batch_size': 4,
    'total_epochs': 4,
    'model.variant': 'golden',
    'model.patch_size': 8,
    'model.image_size': 48,
    'model.dtype': 'float32',
    'predictor.width': 24,
    'predictor.depth': 2,
    'optim.warmup_epochs': 1.5,
    'mask.min_keep': 3,
  }
  made = fields.defaults()
  for name, value in (small | (changes or {})).items():
    fields.assign(made, name, value)
  return made


def weights(shapes: Any, seed: int = 0) -> Any:
  """Random numbers for a tree of shapes: no tensor is special."""
  rng = np.random.default_rng(seed)

  def draw(path: jax.tree_util.KeyPath, x: jax.ShapeDtypeStruct) -> np.ndarray:
    mean = 'scale' in jax.tree_util.keystr(path)
    return (mean + 0.05 * rng.normal(size=x.shape)).astype(x.dtype)

  return jax.tree.map_with_path(draw, shapes)


def model(make: Callable[[], nnx.Module]) -> nnx.Module:
  """What `make` makes, with `weights`; compiles no initialisation."""
  graph, shapes = nnx.split(nnx.eval_shape(make))
  return nnx.merge(graph, weights(shapes))


def state(config: ml_collections.ConfigDict) -> train_step.TrainState:
  """The state of a run, with `weights` of its own in the target encoder."""
  shapes = jax.eval_shape(lambda: train_step.init_state(config))
  return train_step.TrainState(
    step=np.int32(0),
    params=weights(shapes.params, seed=0),
    target=weights(shapes.target, seed=1),
    opt_state=jax.tree.map(
      lambda x: np.zeros(x.shape, x.dtype), shapes.opt_state
    ),
  )


def batch(
  config: ml_collections.ConfigDict, step: int = 0
) -> dict[str, np.ndarray]:
  """Random images and real masks of one step."""
  grid = config.model.image_size // config.model.patch_size
  mask = config.mask
  longest = masks.default_target_tokens(
    grid, mask.target_scale, mask.target_aspect, mask.bounds
  )
  spec = masks.MaskSpec(
    grid,
    mask.num_targets,
    mask.target_scale,
    mask.target_aspect,
    mask.context_scale,
    mask.min_keep,
    mask.context_tokens or grid**2,
    mask.target_tokens or longest,
  )
  drawn = masks.sample_masks(spec, config.seed, step, config.batch_size)
  rng = np.random.default_rng(step)
  shape = (config.batch_size, *2 * [config.model.image_size], 3)
  return {
    'image': rng.integers(0, 256, shape, np.uint8),
    'context': drawn.context,
    'context_length': drawn.context_length,
    'target': drawn.target,
    'target_length': drawn.target_length,
  }


# --- The golden numbers ----------------------------------------------------


def golden(name: str) -> parity_files.Arrays:
  """The arrays of `golden/NAME.npz`."""
  return parity_files.read(GOLDEN / f'{name}.npz')


# `section(arrays, prefix)`: the arrays under `prefix/`, without it.
section = parity_files.Arrays.section


# --- Comparisons -----------------------------------------------------------

# Largest absolute difference of two arrays or trees.
difference = parity_report.difference


def gradient_difference(ours: dict, theirs: dict) -> dict[str, float]:
  """Difference of each tensor of the reference, over its largest value.

  The key bias has no gradient but rounding: its difference is absolute.
  """
  differences, key_biases = parity_report.tensor_differences(
    *(parity_golden.to_theirs(tree) for tree in (ours, theirs)), scaled=True
  )
  return differences | {f'{name}, key': x for name, x in key_biases.items()}
