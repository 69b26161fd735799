"""Schedules, the decay mask, and the optax chain (paper, appendix A.1).

Learning rate, weight decay and momentum are evaluated once, in float64, for
every step of the run; the loop hands one row per step to the compiled step.
In float32 the end of a cosine is off by 1e-4 (1 + cos cancels), and a
momentum of 1 - 1e-7 is not distinguishable from 1: its complement is passed.
"""

import dataclasses
import math

import jax
import ml_collections
import numpy as np
import optax

# Only these decay: kernels and the mask token, by name. Their rank says
# nothing, because biases and norms of stacked blocks are two-dimensional.
_DECAYED = ('kernel', 'mask_token')
# Stored in the model but never updated by the optimiser.
_FROZEN = ('pos_embed',)


@dataclasses.dataclass(frozen=True)
class Schedules:
  """One row per update `i = 0, 1, ...`; float64 arrays `(total_steps,)`.

  Attributes:
    lr: learning rate.
    weight_decay: decoupled weight decay, multiplied by `lr` when applied.
    momentum: of the EMA target encoder.
    one_minus_momentum: exact where `momentum` is close to 1.
  """

  lr: np.ndarray
  weight_decay: np.ndarray
  momentum: np.ndarray
  one_minus_momentum: np.ndarray

  def at(self, step: int) -> dict[str, np.float32]:
    """The scalars that the compiled step takes for update `step`."""
    return {
      'lr': np.float32(self.lr[step]),
      'weight_decay': np.float32(self.weight_decay[step]),
      'one_minus_momentum': np.float32(self.one_minus_momentum[step]),
    }

  def metrics(self, step: int) -> dict[str, float]:
    """The same update's values for the log."""
    return {
      'train/lr': float(self.lr[step]),
      'train/weight_decay': float(self.weight_decay[step]),
      'train/momentum': float(self.momentum[step]),
    }


def total_steps(config: ml_collections.ConfigDict, steps_per_epoch: int) -> int:
  """Length of the run in steps: `total_steps` wins over `total_epochs`."""
  if config.total_steps is not None:
    return config.total_steps
  return config.total_epochs * steps_per_epoch


def make_schedules(
  config: ml_collections.ConfigDict, steps_per_epoch: int
) -> Schedules:
  """Evaluates the schedules of a run (reference: `src/utils/schedulers.py`).

  The reference steps the schedules of learning rate and weight decay before
  the first update, so update `i` uses their value at `i + 1`; momentum starts
  at its first value.

  Args:
    config: reads `optim`, `total_steps`, `total_epochs`.
    steps_per_epoch: the last incomplete batch of an epoch is dropped.
  """
  optim = config.optim
  length = total_steps(config, steps_per_epoch)
  warmup = int(optim.warmup_epochs * steps_per_epoch)
  if config.total_steps is None:
    # The reference's order of products: another may truncate differently.
    horizon = int(optim.schedule_scale * config.total_epochs * steps_per_epoch)
  else:
    horizon = int(optim.schedule_scale * length)

  lr = _cosine(optim.lr, optim.final_lr, max(1, horizon - warmup))
  if warmup:
    rise = optax.linear_schedule(optim.start_lr, optim.lr, warmup)
    lr = optax.join_schedules([rise, lr], [warmup])
  decay = {'cosine': _cosine, 'linear': optax.linear_schedule}
  weight_decay = decay[optim.weight_decay_schedule](
    optim.weight_decay, optim.final_weight_decay, horizon
  )
  complement = optax.linear_schedule(
    1 - optim.ema, 1 - optim.final_ema, optim.schedule_scale * length
  )

  with jax.enable_x64(True):
    updates = np.arange(length, dtype=np.float64)
    one_minus_momentum = np.asarray(complement(updates))
    return Schedules(
      lr=np.asarray(lr(updates + 1)),
      weight_decay=np.asarray(weight_decay(updates + 1)),
      momentum=1 - one_minus_momentum,
      one_minus_momentum=one_minus_momentum,
    )


def _cosine(start: float, end: float, steps: int) -> optax.Schedule:
  """Half a cosine from `start` to `end`, then constant."""
  fall = optax.cosine_decay_schedule(start - end, steps)
  return lambda count: end + fall(count)


def make_optimizer(
  lr: jax.typing.ArrayLike = 0.0,
  weight_decay: jax.typing.ArrayLike = 0.0,
  clip: float = 0.0,
) -> optax.GradientTransformation:
  """AdamW (0.9, 0.999, eps 1e-8) with decay by name.

  `lr` and `weight_decay` may be traced: they are no part of the state, so the
  chain is built anew inside the step with this step's values.

  Args:
    lr: learning rate.
    weight_decay: decoupled, for kernels and the mask token only.
    clip: global norm to clip gradients to; 0 is off.
  """
  adam = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)
  return optax.chain(
    optax.clip_by_global_norm(clip) if clip else optax.identity(),
    optax.masked(adam, trained_mask),
    optax.add_decayed_weights(weight_decay, decay_mask),
    optax.scale_by_learning_rate(lr),
  )


def decay_mask(params: dict) -> dict:
  """True for the parameters that decay."""
  return jax.tree.map_with_path(lambda p, _: _leaf(p) in _DECAYED, params)


def trained_mask(params: dict) -> dict:
  """True for the parameters that have Adam moments."""
  return jax.tree.map_with_path(lambda p, _: _leaf(p) not in _FROZEN, params)


def _leaf(path: jax.tree_util.KeyPath) -> str:
  return jax.tree_util.keystr(path[-1:], simple=True)


def steps_per_epoch(epoch_length: int, batch_size: int) -> int:
  """Batches of an epoch; the last incomplete one is dropped, at least 1."""
  return max(1, math.floor(epoch_length / batch_size))
