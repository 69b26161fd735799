"""Layers shared by encoder and predictor, and the trunk that stacks blocks.

One dtype policy: parameters are float32; matrix products run in `dtype`;
layer norms and softmax in float32.
"""

import functools
from collections.abc import Callable, Collection
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ijepa_jax.models import sizes

# eps of every affine layer norm (reference: `partial(nn.LayerNorm, eps=1e-6)`).
EPSILON = 1e-6

# Standard deviation of kernels and mask token at initialisation. Truncation at
# +-2 in absolute value never bites there (reference: `trunc_normal_(std=0.02)`
# with the bounds' defaults), so a plain normal is the same law.
INIT_STD = 0.02

# `constrain(x)` pins the sharding of activations; models know no mesh.
Constrain = Callable[[jax.Array], jax.Array]


class Position(nnx.Variable):
  """A stored table that is not trained (sin-cos at initialisation)."""


def identity(x: jax.Array) -> jax.Array:
  """The constraint of a model that runs on one device."""
  return x


def sincos_positions(width: int, grid: int) -> np.ndarray:
  """2-D sine-cosine position table `(grid * grid, width)` float32.

  The first half of the channels encodes the column, the second the row, each
  half sines then cosines (MAE's layout, used by the reference).

  Args:
    width: channels; must divide by 4.
    grid: patches per side.
  """
  omega = 1.0 / 10_000 ** (np.arange(width // 4) / (width / 4))
  angle = np.arange(grid)[:, None] * omega  # (grid, width / 4)
  line = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
  shape = (grid, grid, width // 2)
  columns = np.broadcast_to(line[None, :], shape)
  rows = np.broadcast_to(line[:, None], shape)
  table = np.concatenate([columns, rows], axis=2)
  return table.reshape(grid * grid, width).astype(np.float32)


def attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  lengths: jax.Array | None,
  implementation: Literal['xla', 'cudnn'],
) -> jax.Array:
  """Softmax attention over the first `lengths` tokens of each row.

  Args:
    query: `(B, N, H, D)`.
    key: `(B, N, H, D)`.
    value: `(B, N, H, D)`.
    lengths: `(B,)` int32 valid tokens, or None when all are valid. Outputs at
      invalid positions are meaningless but finite.
    implementation: `'xla'` or `'cudnn'`.

  Returns:
    `(B, N, H, D)`.
  """
  return jax.nn.dot_product_attention(
    query,
    key,
    value,
    key_value_seq_lengths=lengths,
    implementation=implementation,
  )


class Linear(nnx.Linear):
  """A linear layer that sees all tokens of all images as rows of one matrix.

  XLA's CPU backend is three times slower at the weight gradient of a batch
  of matrices, a product contracted over two axes (measured).
  """

  def __init__(
    self,
    width: int,
    out: int,
    *,
    dtype: jnp.dtype,
    init_std: float,
    rngs: nnx.Rngs,
  ):
    init = nnx.initializers.normal(init_std)
    super().__init__(width, out, kernel_init=init, dtype=dtype, rngs=rngs)

  def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
    rows = inputs.reshape(-1, inputs.shape[-1])
    rows = super().__call__(rows, out_sharding)
    return rows.reshape(*inputs.shape[:-1], self.out_features)


class Block(nnx.Module):
  """Pre-norm transformer block with fused qkv and exact GELU."""

  def __init__(
    self,
    size: sizes.Size,
    *,
    dtype: jnp.dtype,
    attention: Literal['xla', 'cudnn'],
    init_std: float,
    rngs: nnx.Rngs,
  ):
    linear = functools.partial(
      Linear, dtype=dtype, init_std=init_std, rngs=rngs
    )
    norm = functools.partial(
      nnx.LayerNorm, epsilon=EPSILON, dtype=jnp.float32, rngs=rngs
    )
    self.norm1 = norm(size.width)
    self.qkv = linear(size.width, 3 * size.width)
    self.proj = linear(size.width, size.width)
    self.norm2 = norm(size.width)
    self.fc1 = linear(size.width, size.hidden)
    self.fc2 = linear(size.hidden, size.width)
    self.heads = size.heads
    self.attention = attention

  def __call__(
    self,
    x: jax.Array,
    lengths: jax.Array | None = None,
    keep: tuple[jax.Array | float, jax.Array | float] = (1.0, 1.0),
  ) -> jax.Array:
    """Applies the block.

    Args:
      x: tokens `(B, N, D)`.
      lengths: `(B,)` valid tokens per row, or None.
      keep: factors on the residual branches of attention and MLP: 1, or
        `(B, 1, 1)` for drop path.

    Returns:
      `(B, N, D)`.
    """
    batch, tokens, width = x.shape
    qkv = self.qkv(self.norm1(x))
    qkv = qkv.reshape(batch, tokens, 3, self.heads, width // self.heads)
    y = attention(
      qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], lengths, self.attention
    )
    x = x + keep[0] * self.proj(y.reshape(batch, tokens, width))
    y = nnx.gelu(self.fc1(self.norm2(x)), approximate=False)
    return x + keep[1] * self.fc2(y)


class Trunk(nnx.Module):
  """A stack of blocks and a final layer norm.

  The blocks' parameters are stacked along a leading axis of length `depth`
  and applied by `jax.lax.scan`, so the program's size does not grow with the
  depth, unless `unroll` asks for that: XLA's CPU backend runs the body of a
  loop at half the speed.
  """

  def __init__(
    self,
    size: sizes.Size,
    *,
    dtype: jnp.dtype,
    attention: Literal['xla', 'cudnn'],
    remat: str,
    unroll: bool,
    init_std: float,
    drop_path: float = 0.0,
    rngs: nnx.Rngs,
  ):
    def make(key: jax.Array) -> Block:
      return Block(
        size,
        dtype=dtype,
        attention=attention,
        init_std=init_std,
        rngs=nnx.Rngs(key),
      )

    self.blocks = jax.vmap(make)(jax.random.split(rngs.params(), size.depth))
    self.norm = nnx.LayerNorm(
      size.width, epsilon=EPSILON, dtype=jnp.float32, rngs=rngs
    )
    self.depth = size.depth
    self.remat = remat
    self.unroll = unroll
    self.drop_path = drop_path

  def __call__(
    self,
    x: jax.Array,
    lengths: jax.Array | None = None,
    *,
    constrain: Constrain = identity,
    key: jax.Array | None = None,
  ) -> jax.Array:
    """Applies all blocks and the final norm.

    Args:
      x: tokens `(B, N, D)`.
      lengths: `(B,)` valid tokens per row, or None.
      constrain: pins the sharding of `(B, N, D)` activations.
      key: randomness of drop path; None turns it off.

    Returns:
      `(B, N, D)` float32.
    """
    rates = jnp.linspace(0.0, self.drop_path, self.depth)
    keys = None
    if key is not None and self.drop_path > 0:
      keys = jax.random.split(key, self.depth)

    def body(x, layer):
      block, rate, key = layer
      keep = (1.0, 1.0) if key is None else _drop_path(key, rate, x)
      return constrain(block(x, lengths, keep)), None

    body = _rematerialise(body, self.remat, prevent_cse=self.unroll)
    layer = self.blocks, rates, keys
    x, _ = jax.lax.scan(body, constrain(x), layer, unroll=self.unroll)
    return self.norm(x)

  def intermediate(
    self, x: jax.Array, layers: Collection[int]
  ) -> dict[int, jax.Array]:
    """Outputs of some blocks, each after the final norm.

    Args:
      x: tokens `(B, N, D)`.
      layers: numbers of blocks from 0.

    Returns:
      `(B, N, D)` float32 by block.
    """

    def body(x, block):
      return block(x), None

    outputs = {}
    first = 0
    for layer in sorted(set(layers)):
      part = slice(first, layer + 1)
      blocks = jax.tree.map(lambda p: p[part], self.blocks)  # noqa: B023
      x, _ = jax.lax.scan(body, x, blocks, unroll=self.unroll)
      outputs[layer] = self.norm(x)
      first = layer + 1
    return outputs


def _drop_path(
  key: jax.Array, rate: jax.Array, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Factors of both branches: 0 for a share `rate` of the images.

  The others get `1 / (1 - rate)`.
  """
  kept = jax.random.bernoulli(key, 1 - rate, (2, x.shape[0], 1, 1))
  attention, mlp = (kept / (1 - rate)).astype(x.dtype)
  return attention, mlp


def _rematerialise(
  body: Callable, policy: str, *, prevent_cse: bool
) -> Callable:
  """What the backward pass keeps of a block (`model.remat`).

  Only the body of a loop is safe from XLA's merging what is computed twice.
  """
  if policy == 'none':
    return body
  policies = {
    # Keeps the results of weight products, recomputes everything else.
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    # Keeps only the block's input.
    'full': jax.checkpoint_policies.nothing_saveable,
  }
  return jax.checkpoint(body, prevent_cse=prevent_cse, policy=policies[policy])
