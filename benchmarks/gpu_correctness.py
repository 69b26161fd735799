"""Whether an accelerator computes what the CPU does: tasks of `gpu_check.py`.

Differences are of whole tensors, |a - b| / |b| in Euclidean norms, the largest
of all tensors. Of float32 products, TF32 would be off by 3e-4 and bfloat16 by
3e-3, so a tolerance of 5e-5 passes neither.
"""

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

import gpu_tasks
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ijepa_jax import sharding, train_step
from ijepa_jax.benchmark import trial
from ijepa_jax.data import masks, pipeline

_FLOAT32 = 5e-5
# ViT-B/16 on a CPU: 0.02 in the worst gradient, 0.011 in the median one, 4e-5
# in the loss.
_BFLOAT16 = 0.05
_BFLOAT16_LOSS = 2e-3
_STEPS = 3


# --- Loss and gradients ----------------------------------------------------


def float32_against_cpu(
  config: ConfigDict, earlier: gpu_tasks.Earlier
) -> gpu_tasks.Result:
  """Loss and gradients in float32 on the accelerator and on the CPU."""
  del earlier
  with jax.default_matmul_precision('highest'):
    ours, theirs = (
      _gradients(config, jax.devices(backend)[0], 'float32', 'xla')
      for backend in (None, 'cpu')
    )
  return _compare(ours, theirs, loss=_FLOAT32, gradients=_FLOAT32)


def bfloat16_against_float32(
  config: ConfigDict, attention: str, earlier: gpu_tasks.Earlier
) -> gpu_tasks.Result:
  """Loss and gradients in bfloat16 and in float32, on the accelerator."""
  del earlier
  if skipped := gpu_tasks.lacks_cudnn(attention):
    return skipped
  device = jax.devices()[0]
  with jax.default_matmul_precision('highest'):
    exact = _gradients(config, device, 'float32', 'xla')
  rounded = _gradients(config, device, 'bfloat16', attention)
  return _compare(rounded, exact, loss=_BFLOAT16_LOSS, gradients=_BFLOAT16)


def _gradients(
  config: ConfigDict, device: jax.Device, dtype: str, attention: str
) -> tuple[float, dict[str, np.ndarray]]:
  """The loss, and the gradients by name, of weights that are not special."""
  config = copy.deepcopy(config)
  config.model.dtype, config.model.attention = dtype, attention
  learner = train_step.Learner(config)
  inputs = jax.device_put((_state(config), _batch(config)), device)
  gradients, metrics = jax.device_get(jax.jit(learner.gradients)(*inputs))
  leaves, _ = jax.tree.flatten_with_path(gradients)
  named = {sharding.path_name(path): leaf for path, leaf in leaves}
  return float(metrics['loss']), named


def _state(config: ConfigDict) -> train_step.TrainState:
  """Random weights that keep activations near 1: no tensor is special."""
  rng = np.random.default_rng(0)

  def draw(path: jax.tree_util.KeyPath, leaf: jax.ShapeDtypeStruct) -> Any:
    x = rng.standard_normal(leaf.shape, np.float32)
    name = sharding.path_name(path).rpartition('/')[2]
    if name == 'kernel':
      return x / np.float32(np.sqrt(leaf.shape[-2]))
    return 1 + x / 10 if name == 'scale' else x / 10

  shapes = jax.eval_shape(lambda: train_step.init_state(config))
  params, target = (
    jax.tree.map_with_path(draw, x) for x in (shapes.params, shapes.target)
  )
  return train_step.TrainState(jnp.int32(0), params, target, ())


def _batch(config: ConfigDict) -> dict[str, np.ndarray]:
  """Noise, and masks as in training."""
  size, side = config.batch_size, config.model.image_size
  drawn = masks.sample_masks(pipeline.mask_spec(config), 0, 0, size)
  image = np.random.default_rng(1).integers(
    0, 256, (size, side, side, 3), np.uint8
  )
  return {
    name: image if name == 'image' else getattr(drawn, name)
    for name in train_step.DEVICE_FIELDS
  }


def _compare(
  ours: tuple[float, Mapping[str, np.ndarray]],
  theirs: tuple[float, Mapping[str, np.ndarray]],
  *,
  loss: float,
  gradients: float,
) -> gpu_tasks.Result:
  """Largest differences against tolerances."""
  off = {
    name: difference(ours[1][name], tensor)
    for name, tensor in theirs[1].items()
    if np.any(tensor) or np.any(ours[1][name])  # positions have none
  }
  worst = max(off, key=off.__getitem__)
  values: dict[str, Any] = {
    'loss': ours[0],
    'loss_difference': abs(ours[0] - theirs[0]) / abs(theirs[0]),
    'loss_tolerance': loss,
    'gradient_difference': off[worst],
    'gradient_tolerance': gradients,
    'worst_gradient': worst,
    'median_gradient_difference': float(np.median(list(off.values()))),
  }
  good = values['loss_difference'] <= loss and off[worst] <= gradients
  note = (
    f'loss {values["loss_difference"]:.1e} (at most {loss:.0e}), gradients '
    f'{off[worst]:.1e} (at most {gradients:.0e}; {worst})'
  )
  return gpu_tasks.PASS if good else gpu_tasks.FAIL, note, values


def difference(a: np.ndarray, b: np.ndarray) -> float:
  """`|a - b| / |b|`, infinite where something is not finite."""
  a, b = a.astype(np.float64), b.astype(np.float64)
  with np.errstate(invalid='ignore', divide='ignore'):
    off = np.linalg.norm(a - b) / np.linalg.norm(b)
  return float(off) if np.isfinite(off) else float('inf')


# --- Determinism -----------------------------------------------------------


def same_twice(
  config: ConfigDict, required: bool, earlier: gpu_tasks.Earlier
) -> gpu_tasks.Result:
  """Whether two runs of a few steps end in the same state, bit by bit."""
  del earlier
  if skipped := gpu_tasks.lacks_cudnn(config.model.attention):
    return skipped
  first, second = _digest(config), _digest(config)
  if first != second:
    status = gpu_tasks.FAIL if required else gpu_tasks.UNSUPPORTED
    return status, f'two runs of {_STEPS} steps differ', {}
  note = f'two runs of {_STEPS} steps are the same bit by bit'
  return gpu_tasks.PASS, note, {'sha256': first}


def same_as(
  config: ConfigDict, other: str, earlier: gpu_tasks.Earlier
) -> gpu_tasks.Result:
  """Whether this process ends in the state that another task ended in."""
  if other not in earlier or 'sha256' not in earlier[other].values:
    return gpu_tasks.SKIPPED, f"'{other}' has no result to compare with", {}
  digest = _digest(config)
  if digest == earlier[other].values['sha256']:
    return gpu_tasks.PASS, f"the same as '{other}', bit by bit", {}
  note = (
    f"not the same as '{other}': each process chose its own algorithms for "
    'matrix products (XLA autotunes by timing)'
  )
  return gpu_tasks.UNSUPPORTED, note, {}


def _digest(config: ConfigDict) -> str:
  """Of the state after a few steps from the start."""
  ours = trial.Trial(config)
  ours.run(steps=_STEPS)
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(jax.device_get(ours.state)):
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()
