"""Layers shared by encoder and predictor, and the trunk that stacks blocks.

One dtype policy: parameters are float32; matrix products run in `dtype`;
layer norms and softmax in float32.
"""

import functools
from collections.abc import Callable, Collection
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ijepa_jax.models import elementwise, sizes

# eps of every affine layer norm (reference: `partial(nn.LayerNorm, eps=1e-6)`).
EPSILON = 1e-6

# Standard deviation of kernels and mask token at initialisation. Truncation at
# +-2 in absolute value never bites there (reference: `trunc_normal_(std=0.02)`
# with the bounds' defaults), so a plain normal is the same law.
INIT_STD = 0.02

# Added to the logits of tokens that are not to be looked at.
_MASKED = -1e30

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
    query: `(B, Q, H, D)`.
    key: `(B, N, H, D)`.
    value: `(B, N, H, D)`.
    lengths: `(B,)` int32 valid tokens, or None when all are valid. Outputs at
      invalid positions are meaningless but finite.
    implementation: `'xla'` or `'cudnn'`.

  Returns:
    `(B, Q, H, D)`.
  """
  if implementation == 'cudnn':
    return jax.nn.dot_product_attention(
      query,
      key,
      value,
      key_value_seq_lengths=lengths,
      implementation='cudnn',
    )
  logits = jnp.einsum(
    'bqhd,bkhd->bhqk', query, key, preferred_element_type=jnp.float32
  )
  logits *= query.shape[-1] ** -0.5
  if lengths is not None:
    valid = jnp.arange(key.shape[1]) < lengths[:, None, None, None]
    # Added, not selected: the backward pass has nothing to do.
    logits += jnp.where(valid, 0.0, _MASKED)
  weights = elementwise.softmax(logits, value.dtype)
  return jnp.einsum('bhqk,bkhd->bqhd', weights, value)


class Linear(nnx.Module):
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
    self.kernel = nnx.Param(init(rngs.params(), (width, out)))
    self.bias = nnx.Param(nnx.initializers.zeros(rngs.params(), (out,)))
    self.dtype = dtype

  def __call__(
    self, inputs: jax.Array, channels: slice = slice(None)
  ) -> jax.Array:
    """Maps `(..., width)` to some of the output channels, default all."""
    rows = inputs.reshape(-1, inputs.shape[-1])
    kernel, bias = self.kernel[:, channels], self.bias[channels]
    rows = rows.astype(self.dtype) @ kernel.astype(self.dtype)
    rows += bias.astype(self.dtype)
    return rows.reshape(*inputs.shape[:-1], -1)


class LayerNorm(nnx.Module):
  """Layer norm over channels, in float32."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    self.scale = nnx.Param(nnx.initializers.ones(rngs.params(), (width,)))
    self.bias = nnx.Param(nnx.initializers.zeros(rngs.params(), (width,)))

  def __call__(self, x: jax.Array) -> jax.Array:
    y = elementwise.standardise(x.astype(jnp.float32), EPSILON)
    return y * self.scale[...] + self.bias[...]


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
    self.norm1 = LayerNorm(size.width, rngs=rngs)
    self.qkv = linear(size.width, 3 * size.width)
    self.proj = linear(size.width, size.width)
    self.norm2 = LayerNorm(size.width, rngs=rngs)
    self.fc1 = linear(size.width, size.hidden)
    self.fc2 = linear(size.hidden, size.width)
    self.heads = size.heads
    self.attention = attention

  def __call__(
    self,
    x: jax.Array,
    lengths: jax.Array | None = None,
    keep: tuple[jax.Array | float, jax.Array | float] = (1.0, 1.0),
    outputs: int | None = None,
  ) -> jax.Array:
    """Applies the block.

    Args:
      x: tokens `(B, N, D)`.
      lengths: `(B,)` valid tokens per row, or None.
      keep: factors on the residual branches of attention and MLP: 1, or
        `(B, 1, 1)` for drop path.
      outputs: how many of the first tokens are wanted, or None for all; the
        others are only looked at.

    Returns:
      `(B, N, D)`, or `(B, outputs, D)`.
    """
    query, key, value = self._query_key_value(self.norm1(x), outputs)
    y = attention(query, key, value, lengths, self.attention)
    x = x[:, :outputs]
    x = x + keep[0] * self.proj(y.reshape(x.shape))
    y = elementwise.gelu(self.fc1(self.norm2(x)))
    return x + keep[1] * self.fc2(y)

  def _query_key_value(
    self, x: jax.Array, queries: int | None
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`(B, queries, H, D / H)` and twice `(B, N, H, D / H)`."""
    width = x.shape[-1]
    if queries is None:
      parts = jnp.split(self.qkv(x), 3, axis=-1)
    else:
      parts = [
        self.qkv(x[:, :queries], slice(0, width)),
        *jnp.split(self.qkv(x, slice(width, 3 * width)), 2, axis=-1),
      ]
    query, key, value = (
      part.reshape(*part.shape[:2], self.heads, -1) for part in parts
    )
    return query, key, value


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
    self.norm = LayerNorm(size.width, rngs=rngs)
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
    outputs: int | None = None,
  ) -> jax.Array:
    """Applies all blocks and the final norm.

    Args:
      x: tokens `(B, N, D)`.
      lengths: `(B,)` valid tokens per row, or None.
      constrain: pins the sharding of `(B, N, D)` activations.
      key: randomness of drop path; None turns it off.
      outputs: how many of the first tokens are wanted, or None for all. The
        last block is not computed for the others.

    Returns:
      `(B, N, D)`, or `(B, outputs, D)`, float32.
    """
    rates = jnp.linspace(0.0, self.drop_path, self.depth)
    keys = None
    if key is not None and self.drop_path > 0:
      keys = jax.random.split(key, self.depth)

    def body(x, layer, outputs=None):
      block, rate, key = layer
      keep = (1.0, 1.0) if key is None else _drop_path(key, rate, x)
      return constrain(block(x, lengths, keep, outputs)), None

    rematerialise = functools.partial(_rematerialise, policy=self.remat)
    layers = self.blocks, rates, keys
    last = None
    if outputs is not None:
      last = jax.tree.map(lambda p: p[-1], layers)
      layers = jax.tree.map(lambda p: p[:-1], layers)
    each = rematerialise(body, prevent_cse=self.unroll)
    x, _ = jax.lax.scan(each, constrain(x), layers, unroll=self.unroll)
    if last is not None:
      end = functools.partial(body, outputs=outputs)
      x, _ = rematerialise(end, prevent_cse=True)(x, last)
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
  body: Callable, *, policy: str, prevent_cse: bool
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
