"""Heads on frozen patch tokens: per patch, or with its eight neighbours."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

# `linear`: one layer per patch. `mlp`: two. `conv`: a 3 x 3 convolution, then
# a layer per patch.
Kind = Literal['linear', 'mlp', 'conv']

HIDDEN = 128


def init(
  rng: np.random.Generator, kind: Kind, width: int, outputs: int
) -> dict[str, np.ndarray]:
  """Parameters of a head: He's normal law, and outputs that start near 0.

  Args:
    rng: randomness.
    kind: of head.
    width: channels of a token.
    outputs: numbers per patch.
  """
  inputs = {'linear': width, 'mlp': width, 'conv': 9 * width}[kind]
  params: dict[str, np.ndarray] = {}
  fan_in = inputs
  if kind != 'linear':
    normal = rng.normal(0.0, (2 / inputs) ** 0.5, (inputs, HIDDEN))
    params |= {'hidden_kernel': normal, 'hidden_bias': np.zeros(HIDDEN)}
    fan_in = HIDDEN
  kernel = rng.normal(0.0, 0.01, (fan_in, outputs))
  return params | {'kernel': kernel, 'bias': np.zeros(outputs)}


def apply(
  params: dict[str, jax.Array], kind: Kind, tokens: jax.Array
) -> jax.Array:
  """What the head says of each patch.

  Args:
    params: from `init`.
    kind: of head.
    tokens: `(B, g, g, D)`, standardised.

  Returns:
    `(B, g, g, outputs)` float32.
  """
  x = with_neighbours(tokens) if kind == 'conv' else tokens
  if kind != 'linear':
    x = jax.nn.relu(x @ params['hidden_kernel'] + params['hidden_bias'])
  return x @ params['kernel'] + params['bias']


def with_neighbours(tokens: jax.Array) -> jax.Array:
  """Each patch and those around it, row by row: `(B, g, g, 9 * D)`.

  A convolution as one matrix product, which also many heads at once remain;
  zeros are around the image.
  """
  rows, columns = tokens.shape[1:3]
  padded = jnp.pad(tokens, ((0, 0), (1, 1), (1, 1), (0, 0)))
  shifted = [
    padded[:, y : y + rows, x : x + columns] for y in range(3) for x in range(3)
  ]
  return jnp.concatenate(shifted, axis=-1)
