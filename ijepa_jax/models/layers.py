"""Layers shared by encoder and predictor, and the trunk that stacks blocks.

One dtype policy: parameters are float32; matrix products run in `dtype`;
layer norms and softmax in float32.
"""

import functools
from collections.abc import Callable, Collection
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ijepa_jax.models import attention as attention_lib
from ijepa_jax.models import elementwise, sizes

# eps of every affine layer norm (reference: `partial(nn.LayerNorm, eps=1e-6)`).
EPSILON = 1e-6

# Standard deviation of kernels and mask token at initialisation. Truncation at
# +-2 in absolute value never bites there (reference: `trunc_normal_(std=0.02)`
# with the bounds' defaults), so a plain normal is the same law.
INIT_STD = 0.02

# Names of an array's axes, for `Constrain`: None is any other axis. A kernel's
# input channels are `shard`: what is split to save memory, not work.
Axes = tuple[Literal['batch', 'shard', 'heads'] | None, ...]


class Constrain(Protocol):
  """Pins the sharding of an array; models know no mesh."""

  def __call__(self, x: jax.Array, axes: Axes = ('batch',)) -> jax.Array:
    """Returns `x`, an activation unless `axes` says otherwise."""


class Position(nnx.Variable):
  """A stored table that is not trained (sin-cos at initialisation)."""


def identity(x: jax.Array, axes: Axes = ('batch',)) -> jax.Array:
  """The constraint of a model that runs on one device."""
  del axes
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

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Maps `(..., width)` to `(..., out)`."""
    rows = inputs.reshape(-1, inputs.shape[-1])
    rows = rows.astype(self.dtype) @ self.kernel.astype(self.dtype)
    rows += self.bias.astype(self.dtype)
    return rows.reshape(*inputs.shape[:-1], -1)

  def parts(
    self, inputs: jax.Array, first: int, stop: int, constrain: Constrain
  ) -> jax.Array:
    """Some of the equal parts, as wide as the input, that the output has.

    Devices that share a layer need their own heads of every part, and the
    parts are stored one behind the other. So the kernel is stored split along
    its input channels, and the split moves to the heads here: a kernel is less
    to send than activations.

    Args:
      inputs: `(B, N, D)`.
      first: number of the first part.
      stop: number of the part to stop before.
      constrain: pins the sharding of the kernel.

    Returns:
      `(B, N, stop - first, D)`.
    """
    width = inputs.shape[-1]
    channels = slice(first * width, stop * width)
    kernel = self.kernel[:, channels].astype(self.dtype)
    kernel = kernel.reshape(width, stop - first, width)
    kernel = constrain(kernel, ('shard', None, 'heads'))
    bias = self.bias[channels].astype(self.dtype).reshape(-1, width)
    bias = constrain(bias, (None, None))  # else split across the parts
    rows = inputs.reshape(-1, width).astype(self.dtype)
    rows = jnp.einsum('nd,dpe->npe', rows, kernel) + bias
    return rows.reshape(*inputs.shape[:2], -1, width)


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
    constrain: Constrain = identity,
  ) -> jax.Array:
    """Applies the block.

    Args:
      x: tokens `(B, N, D)`.
      lengths: `(B,)` valid tokens per row, or None.
      keep: factors on the residual branches of attention and MLP: 1, or
        `(B, 1, 1)` for drop path.
      outputs: how many of the first tokens are wanted, or None for all; the
        others are only looked at.
      constrain: pins shardings.

    Returns:
      `(B, N, D)`, or `(B, outputs, D)`.
    """
    query, key, value = self._query_key_value(self.norm1(x), outputs, constrain)
    y = attention_lib.attend(query, key, value, lengths, self.attention)
    x = x[:, :outputs]
    x = x + keep[0] * self.proj(y.reshape(x.shape))
    y = elementwise.gelu(self.fc1(self.norm2(x)))
    return x + keep[1] * self.fc2(y)

  def attention_weights(self, x: jax.Array) -> jax.Array:
    """How much each token looks at the others when all are valid.

    Args:
      x: tokens `(B, N, D)`, as for a call.

    Returns:
      `(B, H, N, N)` float32, asking token before the one that is looked at; a
      row sums to 1.
    """
    query, key, _ = self._query_key_value(self.norm1(x), None, identity)
    return attention_lib.weights(query, key, None, jnp.float32)

  def _query_key_value(
    self, x: jax.Array, queries: int | None, constrain: Constrain
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`(B, queries, H, D / H)` and twice `(B, N, H, D / H)`."""
    if queries is None:
      parts = self.qkv.parts(x, 0, 3, constrain)
      query, key, value = (parts[:, :, i] for i in range(3))
    else:
      query = self.qkv.parts(x[:, :queries], 0, 1, constrain)[:, :, 0]
      parts = self.qkv.parts(x, 1, 3, constrain)
      key, value = parts[:, :, 0], parts[:, :, 1]
    query, key, value = (
      part.reshape(*part.shape[:2], self.heads, -1)
      for part in (query, key, value)
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
      x = block(x, lengths, keep, outputs, constrain)
      return constrain(x), None

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
    outputs = {}
    first = 0
    for layer in sorted(set(layers)):
      x = self._apply(x, first, layer + 1)
      outputs[layer] = self.norm(x)
      first = layer + 1
    return outputs

  def attention_weights(
    self, x: jax.Array, layers: Collection[int]
  ) -> dict[int, jax.Array]:
    """What the heads of some blocks look at.

    Computed from queries and keys once more, because fused implementations
    of attention never hold the weights.

    Args:
      x: tokens `(B, N, D)`.
      layers: numbers of blocks from 0.

    Returns:
      `(B, H, N, N)` float32 by block, see `Block.attention_weights`.
    """
    weights = {}
    first = 0
    for layer in sorted(set(layers)):
      x = self._apply(x, first, layer)
      block = jax.tree.map(lambda p, i=layer: p[i], self.blocks)
      weights[layer] = block.attention_weights(x)
      first = layer
    return weights

  def _apply(self, x: jax.Array, first: int, stop: int) -> jax.Array:
    """Blocks `first` to `stop - 1`, without the final norm."""
    blocks = jax.tree.map(lambda p: p[first:stop], self.blocks)
    x, _ = jax.lax.scan(
      lambda x, block: (block(x), None), x, blocks, unroll=self.unroll
    )
    return x


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
