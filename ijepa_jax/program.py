"""The programs that a run compiles, and what they cost."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from ijepa_jax import errors, sharding, train_step
from ijepa_jax.data import masks, pipeline
from ijepa_jax.models import flops, sizes


def require_attention(config: ml_collections.ConfigDict) -> None:
  """Raises a UserError where `model.attention` cannot run."""
  dtype = train_step.compute_dtype(config.model.dtype)
  if config.model.attention == 'cudnn' and (
    jax.default_backend() != 'gpu' or dtype == 'float32'
  ):
    raise errors.UserError(
      "model.attention='cudnn': expected an NVIDIA GPU and bfloat16, this is "
      f'{jax.devices()[0].device_kind} and {dtype}; nearest: xla'
    )


def target_lengths(config: ml_collections.ConfigDict) -> tuple[int, ...]:
  """What targets are padded to: a length for each program, rising."""
  spec = pipeline.mask_spec(config)
  return masks.target_lengths(spec, config.model.target_buckets)


def batch_shapes(
  config: ml_collections.ConfigDict,
  mesh: jax.sharding.Mesh,
  target_tokens: int,
) -> dict[str, jax.ShapeDtypeStruct]:
  """The batch that one program takes."""
  batch, side = config.batch_size, config.model.image_size
  blocks = config.mask.num_targets
  fields = {
    'image': ((batch, side, side, 3), np.uint8),
    'context': ((batch, config.mask.context_tokens), np.int32),
    'context_length': ((batch,), np.int32),
    'target': ((batch, blocks, target_tokens), np.int32),
    'target_length': ((batch,), np.int32),
  }
  return {
    name: jax.ShapeDtypeStruct(
      shape, dtype, sharding=sharding.batch_sharding(mesh)
    )
    for name, (shape, dtype) in fields.items()
  }


@dataclasses.dataclass(frozen=True)
class Step:
  """The compiled step: one program for each length of the targets.

  Attributes:
    programs: by length, rising; each donates the state.
  """

  programs: Mapping[int, jax.stages.Compiled]

  def cut(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the device needs of a host's batch, for the shortest program.

    A batch has one block size, on all hosts, so they all take the same one.
    """
    size = int(batch['target_length'][0])
    length = masks.padded_length(tuple(self.programs), size)
    fields = {name: batch[name] for name in train_step.DEVICE_FIELDS}
    return fields | {'target': batch['target'][..., :length]}

  def __call__(
    self, state: train_step.TrainState, batch: dict, schedule: dict
  ) -> tuple[train_step.TrainState, dict[str, jax.Array]]:
    """`Learner.step` on a device's batch that was cut; donates the state."""
    return self.programs[batch['target'].shape[-1]](state, batch, schedule)

  @property
  def largest(self) -> Any:
    """The program of the longest targets: the most work and memory."""
    return self.programs[max(self.programs)]


def lower_step(
  config: ml_collections.ConfigDict,
  learner: train_step.Learner,
  state: train_step.TrainState,
  mesh: jax.sharding.Mesh,
  target_tokens: int,
) -> jax.stages.Lowered:
  """The step as XLA gets it, for one length of the targets."""
  step = jax.jit(
    learner.step,
    donate_argnums=0,
    # Without these the second call would compile again, for the shardings
    # that the first one happened to return.
    out_shardings=(
      jax.tree.map(lambda x: x.sharding, state),
      sharding.replicated(mesh),
    ),
  )
  scalar = jax.ShapeDtypeStruct((), np.float32)
  schedule = dict.fromkeys(train_step.SCHEDULE_FIELDS, scalar)
  batch = batch_shapes(config, mesh, target_tokens)
  return step.lower(state, batch, schedule)


def compile_step(
  config: ml_collections.ConfigDict,
  learner: train_step.Learner,
  state: train_step.TrainState,
  mesh: jax.sharding.Mesh,
) -> Step:
  """Compiles the step ahead of time: another shape is an error, not a wait.

  Args:
    config: the run's config, resolved.
    learner: whose step it is.
    state: arrays, or their shapes and shardings.
    mesh: where the step runs.
  """
  return Step(
    {
      length: lower_step(config, learner, state, mesh, length).compile()
      for length in target_lengths(config)
    }
  )


def compile_norms(mesh: jax.sharding.Mesh) -> Callable:
  """Compiles `state_metrics` at its first call."""
  return jax.jit(
    train_step.state_metrics, out_shardings=sharding.replicated(mesh)
  )


def describe(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> str:
  """Devices, mesh, types and attention in words."""
  device = mesh.devices.flat[0]
  axes = ' x '.join(f'{name} {size}' for name, size in mesh.shape.items())
  dtype = train_step.compute_dtype(config.model.dtype)
  return (
    f'{mesh.devices.size} {device.device_kind} ({axes}), {dtype}, '
    f'{config.model.attention} attention'
  )


def useful_flops(
  config: ml_collections.ConfigDict, batch: dict[str, np.ndarray]
) -> float:
  """Operations of one step on all hosts; padding is not useful."""
  return config.batch_size * flops.step_flops(
    sizes.SIZES[config.model.variant],
    train_step.predictor_size(config),
    patch_size=config.model.patch_size,
    patches=(config.model.image_size // config.model.patch_size) ** 2,
    context_tokens=float(batch['context_length'].mean()),
    target_tokens=float(batch['target_length'].mean()),
    num_targets=config.mask.num_targets,
  )
