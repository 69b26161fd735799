"""Small models and batches that several test files use."""

import dataclasses
import functools
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
import pytest
import reference_weights
from flax import nnx

from ijepa_jax import train_step
from ijepa_jax.config import fields
from ijepa_jax.data import masks
from ijepa_jax.models import sizes

GOLDEN = pathlib.Path(__file__).parent / 'golden'

# Half the compilation time; the arithmetic is the same.
jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)


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


def pad(x: np.ndarray, length: int, value: int = 0) -> np.ndarray:
  """Pads the last axis to `length`."""
  width = [(0, 0)] * (x.ndim - 1) + [(0, length - x.shape[-1])]
  return np.pad(x, width, constant_values=value)


# --- The golden numbers ----------------------------------------------------


def golden(name: str) -> dict[str, np.ndarray]:
  """The arrays of `golden/NAME.npz`."""
  with np.load(GOLDEN / f'{name}.npz') as file:
    return dict(file)


def golden_learner(config: ml_collections.ConfigDict) -> train_step.Learner:
  """A learner with the golden numbers' normalisation of images."""
  return train_step.Learner(config, normalise=lambda x: (x - 127.5) / 64)


def section(arrays: dict[str, np.ndarray], prefix: str) -> dict:
  """The arrays whose name starts with `prefix/`, without it."""
  start = f'{prefix}/'
  return {
    name.removeprefix(start): array
    for name, array in arrays.items()
    if name.startswith(start)
  }


def parameters(arrays: dict[str, np.ndarray], prefix: str = '') -> dict:
  """Encoder and predictor under `prefix`, as our parameters."""
  return {
    'encoder': reference_weights.encoder(section(arrays, f'{prefix}encoder')),
    'predictor': reference_weights.predictor(
      section(arrays, f'{prefix}predictor')
    ),
  }


def golden_images(
  seed: int, shape: tuple[int, ...], crc32: np.ndarray
) -> np.ndarray:
  """The images of the golden numbers: NCHW noise, returned as NHWC.

  They are drawn again rather than stored; the checksum tells when a new numpy
  draws something else.
  """
  images = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
  assert zlib.crc32(images.tobytes()) == crc32, 'numpy draws other images'
  return np.moveaxis(images, -3, -1)


def golden_masks(
  context: np.ndarray, target: np.ndarray, length: tuple[int, int] = (0, 0)
) -> dict[str, np.ndarray]:
  """Masks `(1, B, k)` and `(M, B, t)` as a batch, padded up to `length`."""
  count = context.shape[1]
  lengths = max(length[0], context.shape[2]), max(length[1], target.shape[2])
  return {
    'context': pad(context[0].astype(np.int32), lengths[0]),
    'context_length': np.full(count, context.shape[2], np.int32),
    'target': pad(target.swapaxes(0, 1).astype(np.int32), lengths[1]),
    'target_length': np.full(count, target.shape[2], np.int32),
  }


# --- Comparisons -----------------------------------------------------------


def difference(ours: Any, theirs: Any) -> float:
  """Largest absolute difference of two arrays or trees."""
  pairs = jax.tree.map(
    lambda a, b: float(np.abs(np.asarray(a) - b).max()), ours, theirs
  )
  return max(jax.tree.leaves(pairs))


def gradient_difference(ours: dict, theirs: dict) -> dict[str, float]:
  """Difference of each tensor, over the largest value of `theirs`.

  The key bias has no gradient but rounding, and positions none at all: their
  difference is absolute.
  """
  ours = reference_weights.tensors(ours)
  theirs = reference_weights.tensors(theirs)
  assert ours.keys() == theirs.keys()

  def scale(name: str) -> float:
    absolute = name.endswith(('.key', 'pos_embed'))
    return 1.0 if absolute else float(np.abs(theirs[name]).max())

  def of(name: str) -> float:
    return difference(ours[name], theirs[name]) / scale(name)

  return {name: of(name) for name in ours}
