"""The method: one pure step of I-JEPA pre-training (paper, section 3)."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx

from ijepa_jax import optim
from ijepa_jax.models import layers, predictor, sizes, vit

# ImageNet's channel statistics, in units of [0, 1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

Pixels = TypeVar('Pixels', np.ndarray, jax.Array)

# Fields of a batch that the step reads; the others are for the host.
DEVICE_FIELDS = (
  'image',
  'context',
  'context_length',
  'target',
  'target_length',
)

# Scalars of an update that the step reads (`optim.Schedules.at`).
SCHEDULE_FIELDS = ('lr', 'weight_decay', 'one_minus_momentum')


class IJepa(nnx.Module):
  """What is trained by gradient: the context encoder and the predictor."""

  def __init__(self, config: ml_collections.ConfigDict, *, rngs: nnx.Rngs):
    size = sizes.SIZES[config.model.variant]
    compute = {
      'dtype': compute_dtype(config.model.dtype),
      'attention': config.model.attention,
      'remat': config.model.remat,
      'unroll': config.model.unroll,
      'init_std': config.model.init_std,
    }
    self.encoder = vit.Encoder(
      size,
      patch_size=config.model.patch_size,
      image_size=config.model.image_size,
      drop_path=config.model.drop_path,
      rngs=rngs,
      **compute,
    )
    self.predictor = predictor.Predictor(
      predictor_size(config),
      encoder_width=size.width,
      grid=config.model.image_size // config.model.patch_size,
      rngs=rngs,
      **compute,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
  """All that changes during training, and all that a checkpoint holds.

  Attributes:
    step: number of updates made, int32 scalar.
    params: `{'encoder': ..., 'predictor': ...}`, float32.
    target: the EMA copy of `params['encoder']`, float32.
    opt_state: Adam moments, float32.
  """

  step: jax.Array
  params: dict[str, Any]
  target: dict[str, Any]
  opt_state: optax.OptState


def compute_dtype(name: str) -> jnp.dtype:
  """Type of the matrix products for a value of `model.dtype`."""
  if name == 'auto':
    name = 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
  return jnp.dtype(name)


def predictor_size(config: ml_collections.ConfigDict) -> sizes.Size:
  """The predictor's own width, depth and heads."""
  encoder = sizes.SIZES[config.model.variant]
  return sizes.Size(
    width=config.predictor.width,
    depth=config.predictor.depth,
    heads=config.predictor.heads or encoder.heads,
  )


def init_state(config: ml_collections.ConfigDict) -> TrainState:
  """The state before the first step; pure, so it can be jitted or abstract."""
  model = IJepa(config, rngs=nnx.Rngs(config.seed))
  params = nnx.to_pure_dict(nnx.state(model))
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    # A real copy: the step donates the state, and no buffer twice.
    target=jax.tree.map(jnp.copy, params['encoder']),
    opt_state=optim.make_optimizer(clip=config.optim.clip).init(params),
  )


def normalise(images: Pixels) -> Pixels:
  """uint8 `(..., 3)` to float32 with ImageNet's mean and std.

  NumPy arrays stay NumPy: data loaders' processes must not open the device.
  """
  mean, std = np.asarray(MEAN, np.float32), np.asarray(STD, np.float32)
  return (images / np.float32(255) - mean) / std


class Learner:
  """The static part of the method: model structure and recipe constants."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    constrain: layers.Constrain = layers.identity,
    normalise: Callable[[jax.Array], jax.Array] = normalise,
  ):
    """Makes a learner.

    Args:
      config: the run's config.
      constrain: pins the batch axis of activations to the mesh.
      normalise: uint8 images to the model's input.
    """
    self.normalise = normalise
    model = nnx.eval_shape(lambda: IJepa(config, rngs=nnx.Rngs(0)))
    self._model = nnx.graphdef(model)
    self._encoder = nnx.graphdef(model.encoder)
    self._constrain = constrain
    self._loss = {
      'smooth_l1': lambda error: optax.huber_loss(error, delta=1.0),
      'l2': jnp.square,
      'l1': jnp.abs,
    }[config.loss]
    self._clip = config.optim.clip
    self._accumulate = config.optim.accumulate
    self._seed = config.seed

  def encoder(self, params: dict) -> vit.Encoder:
    """The encoder as a module."""
    return nnx.merge(self._encoder, params)

  def encode(self, encoder: dict, images: jax.Array) -> jax.Array:
    """Features `(B, N, D)` of normalised images `(B, S, S, 3)`."""
    return self.encoder(encoder)(images, constrain=self._constrain)

  def targets(
    self, encoder: dict, images: jax.Array, target: jax.Array
  ) -> jax.Array:
    """Representations of the target blocks, `(B, M, T, D)`.

    The target encoder sees the whole image; a layer norm without parameters
    follows, with PyTorch's default eps (reference: `train.py`).
    """
    features = self.encode(encoder, images)
    mean = features.mean(-1, keepdims=True)
    variance = features.var(-1, keepdims=True)
    features = (features - mean) * jax.lax.rsqrt(variance + 1e-5)
    return jnp.take_along_axis(features[:, None], target[..., None], axis=2)

  def predictions(
    self, params: dict, images: jax.Array, batch: dict, key: jax.Array | None
  ) -> jax.Array:
    """What the predictor says of the target blocks, `(B, M, T, D)`."""
    model = nnx.merge(self._model, params)
    context = batch['context'], batch['context_length']
    features = model.encoder(
      images, *context, constrain=self._constrain, key=key
    )
    return model.predictor(
      features,
      *context,
      batch['target'],
      batch['target_length'][0],  # a batch has one block size
      constrain=self._constrain,
    )

  def loss(
    self,
    params: dict,
    target_encoder: dict,
    images: jax.Array,
    batch: dict,
    key: jax.Array | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean loss over all predicted tokens and channels, and health figures.

    Args:
      params: encoder and predictor.
      target_encoder: the EMA encoder; no gradient flows into it.
      images: normalised, `(B, S, S, 3)`.
      batch: the masks.
      key: randomness of drop path; None turns it off.
    """
    truth = self.targets(target_encoder, images, batch['target'])
    truth = jax.lax.stop_gradient(truth)
    guess = self.predictions(params, images, batch, key).astype(jnp.float32)
    valid = jnp.arange(truth.shape[2]) < batch['target_length'][0]

    def mean(x: jax.Array) -> jax.Array:
      """Over valid tokens: `(B, M, T, D)` to `(D,)`."""
      total = jnp.where(valid[:, None], x, 0).sum((0, 1, 2))
      return total / (x.shape[0] * x.shape[1] * valid.sum())

    loss = mean(self._loss(guess - truth)).mean()
    norms = jnp.linalg.norm(guess, axis=-1) * jnp.linalg.norm(truth, axis=-1)
    cosine = (guess * truth).sum(-1) / jnp.maximum(norms, 1e-12)
    health = {
      'target_variance': (mean(truth**2) - mean(truth) ** 2).mean(),
      'prediction_variance': (mean(guess**2) - mean(guess) ** 2).mean(),
      'prediction_target_cosine': mean(cosine[..., None])[0],
    }
    return loss, health

  def gradients(
    self, state: TrainState, batch: dict
  ) -> tuple[dict, dict[str, jax.Array]]:
    """Gradients and metrics, averaged over `optim.accumulate` parts."""

    def part(batch: dict, key: jax.Array) -> tuple[dict, dict]:
      images = self.normalise(batch['image'])
      (loss, health), gradients = jax.value_and_grad(self.loss, has_aux=True)(
        state.params, state.target, images, batch, key
      )
      return gradients, {'loss': loss, **health}

    count = self._accumulate
    key = jax.random.fold_in(jax.random.key(self._seed), state.step)
    if count == 1:
      return part(batch, key)

    def split(x: jax.Array) -> jax.Array:
      # Part i takes every count-th image, so each device keeps its own.
      return jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)

    def body(total: Any, inputs: tuple) -> tuple[Any, None]:
      return jax.tree.map(jnp.add, total, part(*inputs)), None

    inputs = jax.tree.map(split, batch), jax.random.split(key, count)
    first = jax.tree.map(lambda x: x[0], inputs)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(part, *first))
    total, _ = jax.lax.scan(body, zeros, inputs)
    return jax.tree.map(lambda x: x / count, total)

  def step(
    self, state: TrainState, batch: dict, schedule: dict
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update of encoder, predictor and target encoder.

    Args:
      state: donated by the caller's jit.
      batch: `DEVICE_FIELDS`; images uint8.
      schedule: `lr`, `weight_decay`, `one_minus_momentum` of this update.

    Returns:
      The new state, and scalar metrics of this step.
    """
    gradients, metrics = self.gradients(state, batch)
    optimizer = optim.make_optimizer(
      schedule['lr'], schedule['weight_decay'], self._clip
    )
    updates, opt_state = optimizer.update(
      gradients, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    # The target follows the UPDATED encoder.
    target = optax.incremental_update(
      params['encoder'], state.target, schedule['one_minus_momentum']
    )
    metrics['grad_norm'] = optax.tree.norm(gradients)
    return TrainState(state.step + 1, params, target, opt_state), metrics


def state_metrics(state: TrainState) -> dict[str, jax.Array]:
  """Figures that need all parameters; run when logging, not every step."""
  distance = jax.tree.map(jnp.subtract, state.params['encoder'], state.target)
  return {
    'param_norm': optax.tree.norm(state.params),
    'target_distance': optax.tree.norm(distance),
  }
