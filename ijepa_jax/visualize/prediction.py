"""What a predictor says of target blocks, and what it should have said."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ijepa_jax import errors, train_step
from ijepa_jax.data import masks as masks_lib
from ijepa_jax.interop.weights import Architecture, Weights
from ijepa_jax.models import elementwise, predictor, sizes

# Of the layer norm that targets pass through (reference: `train.py`).
_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class Predictor:
  """A context encoder and the predictor on it.

  Attributes:
    architecture: of the encoder.
    size: of the predictor.
    encoder: the encoder's parameters, nested.
    params: the predictor's.
  """

  architecture: Architecture
  size: sizes.Size
  encoder: dict[str, Any]
  params: dict[str, Any]

  def __call__(self, images: np.ndarray, masks: masks_lib.Masks) -> np.ndarray:
    """Predicts target blocks from the context.

    Args:
      images: `(B, S, S, 3)` uint8.
      masks: of these images.

    Returns:
      `(B, M, T, D)` float32; rows past the length of a target are meaningless.
    """
    return np.asarray(
      _predict(
        self.architecture,
        self.size,
        (self.encoder, self.params),
        images,
        (masks.context, masks.context_length),
        (masks.target, masks.target_length[0]),
      )
    )

  def untrained(self, init_std: float, seed: int) -> 'Predictor':
    """The same encoder with a predictor before its first step."""
    key = jax.random.key(seed)
    params = _initial(self.architecture, self.size, init_std, key)
    return dataclasses.replace(self, params=params)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _initial(
  architecture: Architecture, size: sizes.Size, init_std: float, key: jax.Array
) -> dict[str, Any]:
  model = predictor.Predictor(
    size,
    encoder_width=architecture.size.width,
    grid=architecture.grid,
    init_std=init_std,
    rngs=nnx.Rngs(key),
  )
  return nnx.to_pure_dict(nnx.state(model))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _predict(
  architecture: Architecture,
  size: sizes.Size,
  params: tuple[dict, dict],
  images: jax.Array,
  context: tuple[jax.Array, jax.Array],
  target: tuple[jax.Array, jax.Array],
) -> jax.Array:
  encoder = nnx.merge(nnx.graphdef(architecture.encoder()), params[0])
  model = nnx.merge(nnx.graphdef(architecture.predictor(size)), params[1])
  features = encoder(train_step.normalise(images), *context)
  return model(features, *context, *target).astype(jnp.float32)


def load(held: Weights) -> Predictor:
  """The predictor of a checkpoint.

  Raises:
    UserError: it has none.
  """
  if held.predictor is None or held.predictor_size is None:
    raise errors.UserError(
      f'{held.source} holds no predictor (format: {held.format}); a run, '
      "convert --to=orbax and the reference's checkpoints have one"
    )
  return Predictor(
    held.architecture,
    held.predictor_size,
    held.context.tree(),
    held.predictor.tree(),
  )


def targets(features: np.ndarray) -> np.ndarray:
  """What predictions are compared with: features after a layer norm.

  Args:
    features: `(..., D)` of the target encoder.

  Returns:
    The same shape, float32, with zero mean and unit variance over D.
  """
  return np.asarray(
    elementwise.standardise(jnp.asarray(features, jnp.float32), _EPSILON)
  )


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Cosine similarity of vectors along the last axis, -1..1."""
  norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
  return (a * b).sum(-1) / np.maximum(norms, 1e-12)


@dataclasses.dataclass(frozen=True)
class Hole:
  """All that was predicted of an image, patch by patch.

  Attributes:
    patches: `(k,)` patch numbers, rising.
    features: `(k, D)`; where blocks overlap, the mean of their predictions.
    blocks: `(M, T)` the patch numbers of each block.
  """

  patches: np.ndarray
  features: np.ndarray
  blocks: np.ndarray


def holes(predictions: np.ndarray, masks: masks_lib.Masks) -> list[Hole]:
  """Joins the predictions `(B, M, T, D)` of an image's blocks."""
  length = int(masks.target_length[0])
  made = []
  for blocks, predicted in zip(masks.target, predictions):
    blocks, predicted = blocks[:, :length], predicted[:, :length]
    numbers, where = np.unique(blocks, return_inverse=True)
    sums = np.zeros((len(numbers), predicted.shape[-1]), np.float32)
    np.add.at(sums, where.ravel(), predicted.reshape(-1, sums.shape[1]))
    counts = np.bincount(where.ravel())
    made.append(Hole(numbers, sums / counts[:, None], blocks))
  return made


def block_cosines(
  predictions: np.ndarray, truth: np.ndarray, masks: masks_lib.Masks
) -> np.ndarray:
  """Cosine of every prediction with its target.

  Args:
    predictions: `(B, M, T, D)`.
    truth: `(B, N, D)` targets of all patches.
    masks: of these images.

  Returns:
    `(B, M, t)`, t the length of this batch's targets.
  """
  length = int(masks.target_length[0])
  blocks = masks.target[..., :length]
  wanted = np.take_along_axis(truth[:, None], blocks[..., None], axis=2)
  return cosine(predictions[:, :, :length], wanted)
