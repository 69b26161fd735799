"""A small decoder from the features of a patch to its pixels.

It shows what features hold, and only that: it is trained on frozen features,
patch by patch, with a squared error, so what they do not tell comes out as the
mean of all that it may be.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ijepa_jax.metrics import counting

_HIDDEN = 256
_BATCH = 512
_STEPS_PER_CALL = 100
_LEARNING_RATE = 2e-3

Params = list[dict[str, jax.Array]]


def initialise(key: jax.Array, width: int, out: int) -> Params:
  """Two hidden layers."""
  sizes = (width, _HIDDEN, _HIDDEN, out)
  keys = jax.random.split(key, len(sizes) - 1)
  return [
    {
      'kernel': jax.random.normal(k, (a, b)) * math.sqrt(2 / a),
      'bias': jnp.zeros(b),
    }
    for k, a, b in zip(keys, sizes, sizes[1:])
  ]


@jax.jit
def decode(params: Params, features: jax.Array) -> jax.Array:
  """Features `(..., D)` to pixels `(..., P * P * 3)`, about -1 to 1."""
  x = features
  for layer in params[:-1]:
    x = jax.nn.gelu(x @ layer['kernel'] + layer['bias'])
  return x @ params[-1]['kernel'] + params[-1]['bias']


def train(features: np.ndarray, pixels: np.ndarray, steps: int) -> Params:
  """Fits a decoder; the same input gives the same decoder.

  Args:
    features: `(m, D)` of patches, normalised.
    pixels: `(m, P * P * 3)`, -1 to 1.
    steps: updates, a multiple of 100.
  """
  first, start = jax.random.split(jax.random.key(0))
  params = initialise(first, features.shape[1], pixels.shape[1])
  state = _optimizer(steps).init(params)
  rows = jnp.asarray(features), jnp.asarray(pixels)
  with counting.Counter('decoder', steps, 'steps') as counter:
    for key in jax.random.split(start, steps // _STEPS_PER_CALL):
      params, state = _train(steps, params, state, rows, key)
      jax.block_until_ready(params)
      counter.add(_STEPS_PER_CALL)
  return params


def _optimizer(steps: int) -> optax.GradientTransformation:
  return optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, steps))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def _train(
  steps: int,
  params: Params,
  state: optax.OptState,
  rows: tuple[jax.Array, jax.Array],
  key: jax.Array,
) -> tuple[Params, optax.OptState]:
  """Makes 100 updates of `steps`."""

  def loss(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.square(decode(params, x) - y).mean()

  def step(carry: tuple, key: jax.Array) -> tuple:
    params, state = carry
    chosen = jax.random.randint(key, (_BATCH,), 0, len(rows[0]))
    gradients = jax.grad(loss)(params, *(x[chosen] for x in rows))
    updates, state = _optimizer(steps).update(gradients, state)
    return (optax.apply_updates(params, updates), state), None

  keys = jax.random.split(key, _STEPS_PER_CALL)
  carry, _ = jax.lax.scan(step, (params, state), keys)
  return carry


def to_pixels(patches: np.ndarray) -> np.ndarray:
  """uint8 patches `(..., P, P, 3)` to `(..., P * P * 3)`, -1 to 1."""
  flat = patches.reshape(*patches.shape[:-3], -1)
  return flat.astype(np.float32) / 127.5 - 1


def to_patches(pixels: np.ndarray, side: int) -> np.ndarray:
  """The inverse, clipped."""
  levels = np.clip(np.round((np.asarray(pixels) + 1) * 127.5), 0, 255)
  return levels.astype(np.uint8).reshape(*levels.shape[:-1], side, side, 3)


def explained(predicted: np.ndarray, pixels: np.ndarray) -> float:
  """Share of the pixels' variance that is explained, at most 1.

  Args:
    predicted: `(m, C)`.
    pixels: `(m, C)`.
  """
  error = np.square(predicted - pixels).mean()
  return float(1 - error / np.square(pixels - pixels.mean(0)).mean())
