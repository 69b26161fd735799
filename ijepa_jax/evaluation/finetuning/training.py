"""Fine-tunes a classifier: one compiled step, sharded over all devices."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ijepa_jax import optim, rows, sharding, train_step
from ijepa_jax.data import sources, threads, transforms
from ijepa_jax.evaluation.finetuning import (
  batches,
  layer_decay,
  mixing,
  planning,
)
from ijepa_jax.evaluation.finetuning.model import Classifier
from ijepa_jax.evaluation.finetuning.recipe import Recipe
from ijepa_jax.interop.weights import Architecture
from ijepa_jax.metrics import progress

# Between two reports of progress.
_SECONDS = 10.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
  """All that changes.

  Attributes:
    step: updates made, int32 scalar.
    params: encoder and head.
    average: their moving average, which is evaluated.
    opt_state: Adam's moments.
  """

  step: jax.Array
  params: dict[str, Any]
  average: dict[str, Any]
  opt_state: optax.OptState


class FineTuner:
  """Fine-tunes encoders of one shape; compiles once per size of the batch."""

  def __init__(
    self,
    architecture: Architecture | None,
    image_size: int,
    classes: int,
    recipe: Recipe,
    mesh: jax.sharding.Mesh,
    dtype: str = 'float32',
  ):
    """Makes a fine-tuner.

    Args:
      architecture: of the encoders, or None for pixels.
      image_size: side of the images in pixels.
      classes: how many there are.
      recipe: how it is done.
      mesh: the devices.
      dtype: of the matrix products.
    """
    self._classes, self._recipe, self._mesh = classes, recipe, mesh
    self._image_size = image_size
    self._model = Classifier(
      architecture,
      image_size,
      classes,
      dtype=dtype,
      drop_path=recipe.drop_path,
      constrain=sharding.constrain(mesh),
    )
    shapes = jax.eval_shape(
      self._make, self._model.encoder_shapes, jax.random.key(0)
    )
    placed = sharding.state_shardings(mesh, shapes)
    whole = sharding.replicated(mesh)
    self._begin = jax.jit(self._make, out_shardings=placed)
    self._advance = jax.jit(
      self._update, donate_argnums=0, out_shardings=(placed, whole)
    )
    self._logits = jax.jit(self._forward, out_shardings=whole)

  def plan(self, images: int) -> planning.Plan:
    """What `fit` does with so many images."""
    return planning.plan(self._recipe, images, self._mesh.devices.size)

  def fit(
    self,
    encoder: dict | None,
    source: sources.Source,
    records: np.ndarray,
    label: str,
    seed: int,
    workers: int = 0,
  ) -> dict[str, Any]:
    """Trains on labelled images, as `plan` of their number says.

    Args:
      encoder: parameters to start from; they are not changed.
      source: where the records are.
      records: `(n,)` record numbers, all readable.
      label: which label.
      seed: of head, order, augmentation, drop path and mixing.
      workers: processes that read images; 0: a thread of this one.

    Returns:
      The parameters to evaluate.
    """
    plan = self.plan(len(records))
    size, rates = plan.batch_size, plan.rates()
    head, noise = jax.random.split(jax.random.key(seed))
    state = self._begin(encoder, head)
    bar = progress.Progress(
      plan.steps, 0, plan.per_epoch, size, enabled=jax.process_index() == 0
    )
    bar.log(str(plan))
    told, before = time.monotonic(), jnp.zeros(())
    with batches.batches(
      source,
      records,
      label,
      self._recipe,
      image_size=self._image_size,
      seed=seed,
      batch_size=size,
      steps=plan.steps,
      rows=rows.held(self._mesh, size),
      workers=workers,
    ) as iterator:
      for step, batch in enumerate(iterator):
        batch = sharding.put_batch(self._mesh, batch)
        rate = np.float32(rates[step])
        state, loss = self._advance(state, batch, rate, noise)
        # One step behind: the next batch is read meanwhile, and no more of
        # them than two wait for the device.
        before.block_until_ready()
        before = loss
        bar.advance(step + 1)
        if time.monotonic() - told > _SECONDS:
          bar.report(step + 1, float(loss))
          told = time.monotonic()
    bar.close()
    return state.average

  def predict(
    self, params: dict, source: sources.Source, records: np.ndarray, crop: float
  ) -> np.ndarray:
    """Predicted classes `(n,)` of central crops.

    Args:
      params: from `fit`.
      source: where the records are.
      records: `(n,)` record numbers, all readable.
      crop: as of `EvalTransform`.
    """
    devices = self._mesh.devices.size
    size = min(self._recipe.batch_size, len(records))
    shares = rows.Shares(self._mesh, max(devices, size - size % devices))
    transform = transforms.EvalTransform(self._image_size, crop)
    rng = np.random.default_rng(0)  # nothing is drawn from it

    def image(record: np.int64) -> np.ndarray:
      example = batches.read(source, int(record))
      return transforms.apply(example['image'], transform, rng)

    mine = records[shares.mine(len(records))]
    side = self._image_size
    logits = shares.stream(
      threads.in_threads(image, mine, 2 * size),
      len(records),
      (side, side, 3),
      np.uint8,
      lambda batch: self._logits(params, batch),
    )
    return np.concatenate([block.argmax(1) for block in logits])

  def _forward(self, params: dict, images: jax.Array) -> jax.Array:
    return self._model(params, train_step.normalise(images))

  def _make(self, encoder: dict | None, key: jax.Array) -> State:
    """The state before the first step."""
    params = self._model.init(encoder, key)
    return State(
      step=jnp.zeros((), jnp.int32),
      params=params,
      average=jax.tree.map(jnp.copy, params),
      opt_state=optim.make_optimizer().init(params),
    )

  def _update(
    self, state: State, batch: dict, lr: jax.Array, key: jax.Array
  ) -> tuple[State, jax.Array]:
    """One step; returns the new state and the loss."""
    recipe = self._recipe
    mix_key, drop_key = jax.random.split(jax.random.fold_in(key, state.step))
    images = train_step.normalise(batch['image'])
    targets = mixing.smooth_one_hot(
      batch['label'], self._classes, recipe.label_smoothing
    )
    images, targets = mixing.mix(
      mix_key, images, targets, mixup=recipe.mixup, cutmix=recipe.cutmix
    )

    def loss(params: dict) -> jax.Array:
      logits = self._model(params, images, drop_key)
      return optax.softmax_cross_entropy(logits, targets).mean()

    value, gradients = jax.value_and_grad(loss)(state.params)
    optimizer = optim.make_optimizer(lr, recipe.weight_decay)
    updates, opt_state = optimizer.update(
      gradients, state.opt_state, state.params
    )
    # Behind the optimiser: Adam does not see the size of a gradient.
    scales = layer_decay.scales(
      state.params, recipe.layer_decay, self._model.depth
    )
    updates = jax.tree.map(jnp.multiply, updates, scales)
    params = optax.apply_updates(state.params, updates)
    # Short runs would hardly leave the start at the full decay (TensorFlow's
    # ExponentialMovingAverage with num_updates).
    decay = jnp.minimum(recipe.ema, (1 + state.step) / (10 + state.step))
    average = optax.incremental_update(params, state.average, 1 - decay)
    return State(state.step + 1, params, average, opt_state), value
