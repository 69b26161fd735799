"""Our model at any sizes: outputs, activations and gradients of a batch.

Everything runs through `train_step.Learner`, as training does.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import parity_golden
from flax import nnx

from ijepa_jax import train_step
from ijepa_jax.config import fields
from ijepa_jax.models import layers, sizes

# Half the compilation time; the arithmetic is the same.
jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)


class Weights(NamedTuple):
  """Parameters of both encoders and the predictor, as `Learner` takes them."""

  params: dict[str, Any]
  target: dict[str, Any]


def make_weights(tensors: Mapping[str, np.ndarray], path: Any) -> Weights:
  """Our parameters of the reference's tensors, by `PART/NAME`.

  Where there is no target encoder, it is the encoder, as before training.
  """
  params = {
    part: parity_golden.to_ours(tensors, part, path)
    for part in ('encoder', 'predictor')
  }
  if 'target_encoder/pos_embed' not in tensors:
    return Weights(params, params['encoder'])
  return Weights(params, parity_golden.to_ours(tensors, 'target_encoder', path))


# --- The model at the sizes of a golden file -------------------------------


class Model:
  """What training would run at these sizes.

  Attributes:
    learner: its learner, with the golden numbers' normalisation.
  """

  def __init__(
    self,
    shape: parity_golden.Shape,
    constrain: layers.Constrain = layers.identity,
    changes: Mapping[str, Any] | None = None,
  ):
    """Makes the learner.

    Args:
      shape: sizes.
      constrain: what sees every activation on its way.
      changes: of the config, by dotted names.
    """
    config = fields.defaults()
    values = {
      'model.variant': 'of the golden file',
      'model.patch_size': shape.patch_size,
      'model.image_size': shape.image_size,
      'model.dtype': 'float32',
      'predictor.width': shape.predictor.width,
      'predictor.depth': shape.predictor.depth,
      'predictor.heads': shape.predictor.heads,
    }
    for name, value in {**values, **(changes or {})}.items():
      fields.assign(config, name, value)
    # A config knows the size of its encoder by name.
    with mock.patch.dict(sizes.SIZES, {config.model.variant: shape.encoder}):
      self.learner = train_step.Learner(
        config, constrain, parity_golden.normalise
      )
      model = nnx.eval_shape(lambda: train_step.IJepa(config, rngs=nnx.Rngs(0)))
    self._encoder = nnx.graphdef(model.encoder)
    self._patches = shape.patches

  def target_full(self, weights: Weights, batch: dict) -> jax.Array:
    """`(B, N, D)`."""
    return self.learner.encode(weights.target, self._images(batch))

  def target_ln(self, weights: Weights, batch: dict) -> jax.Array:
    """`(B, N, D)` after the second layer norm."""
    images = self._images(batch)
    everything = jnp.arange(self._patches)[None, None]
    return self.learner.targets(weights.target, images, everything)[:, 0]

  def target_masked(self, weights: Weights, batch: dict) -> jax.Array:
    """`(B, M, T, D)`."""
    images = self._images(batch)
    return self.learner.targets(weights.target, images, batch['target'])

  def context_out(self, weights: Weights, batch: dict) -> jax.Array:
    """`(B, K, D)`."""
    encoder = nnx.merge(self._encoder, weights.params['encoder'])
    context = batch['context'], batch['context_length']
    return encoder(self._images(batch), *context)

  def predictor_out(self, weights: Weights, batch: dict) -> jax.Array:
    """`(B, M, T, D)`."""
    images = self._images(batch)
    return self.learner.predictions(weights.params, images, batch, None)

  def loss(self, weights: Weights, batch: dict) -> jax.Array:
    """The config's loss."""
    return self.learner.loss(*weights, self._images(batch), batch)[0]

  def gradients(self, weights: Weights, batch: dict) -> tuple[dict, Any]:
    """Gradients of parameters and images; the latter show what was seen."""
    slope = jax.grad(self.learner.loss, argnums=(0, 2), has_aux=True)
    return slope(*weights, self._images(batch), batch)[0]

  def _images(self, batch: dict) -> jax.Array:
    return self.learner.normalise(batch['image'])


def forward(
  shape: parity_golden.Shape,
  weights: Weights,
  batch: dict,
  wanted: tuple[str, ...],
) -> dict[str, np.ndarray]:
  """Outputs by their names in the golden file; `l2_loss` is one of them."""
  model = Model(shape)
  squared = Model(shape, changes={'loss': 'l2'})

  @jit
  def run(weights: Weights, batch: dict) -> dict[str, jax.Array]:
    return {
      name: squared.loss(weights, batch)
      if name == 'l2_loss'
      else getattr(model, name)(weights, batch)
      for name in wanted
    }

  outputs = jax.device_get(run(weights, batch))
  blocks = 'target_masked', 'predictor_out'
  return {
    name: parity_golden.block_by_block(x) if name in blocks else x
    for name, x in outputs.items()
  }


def recorder(seen: list[np.ndarray]) -> layers.Constrain:
  """A `constrain` that appends the activations that it is shown.

  It does so when the program runs.
  """

  def record(x: jax.Array, axes: layers.Axes = ('batch',)) -> jax.Array:
    if axes == ('batch',):
      jax.debug.callback(lambda x: seen.append(np.array(x)), x, ordered=True)
    return x

  return record


def activations(
  shape: parity_golden.Shape, weights: Weights, batch: dict
) -> dict[str, list[np.ndarray]]:
  """What enters the first block and leaves each one, by model.

  Seen by `constrain`, which the trunk shows them to.
  """
  seen: list[np.ndarray] = []
  model = Model(shape, recorder(seen))

  @jit
  def run(weights: Weights, batch: dict) -> tuple[jax.Array, jax.Array]:
    target = model.target_full(weights, batch)
    return target, model.predictor_out(weights, batch)

  jax.block_until_ready(run(weights, batch))
  jax.effects_barrier()
  ends = np.cumsum([1 + shape.encoder.depth] * 2)
  return {
    'target': seen[: ends[0]],
    'context': seen[ends[0] : ends[1]],
    'predictor': seen[ends[1] :],
  }
