"""The predictor: a narrow transformer from context to targets (section 3)."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from ijepa_jax.models import layers, sizes


class Predictor(nnx.Module):
  """Predicts the representation of each target block from the context."""

  def __init__(
    self,
    size: sizes.Size,
    *,
    encoder_width: int,
    grid: int,
    dtype: jnp.dtype = jnp.float32,
    attention: Literal['xla', 'cudnn'] = 'xla',
    remat: str = 'none',
    unroll: bool = False,
    init_std: float = layers.INIT_STD,
    rngs: nnx.Rngs,
  ):
    """Makes a predictor.

    Args:
      size: the predictor's own width, depth and heads.
      encoder_width: channels of the context and of the predictions.
      grid: patches per side of the image.
      dtype: type of the matrix products.
      attention: `'xla'` or `'cudnn'`.
      remat: `'none'`, `'dots'` or `'full'`.
      unroll: unroll the loop over blocks.
      init_std: of kernels and mask token.
      rngs: randomness of the initialisation.
    """
    linear = functools.partial(
      layers.Linear, dtype=dtype, init_std=init_std, rngs=rngs
    )
    self.embed = linear(encoder_width, size.width)
    init = nnx.initializers.normal(init_std)
    self.mask_token = nnx.Param(init(rngs.params(), (size.width,)))
    table = layers.sincos_positions(size.width, grid)
    self.pos_embed = layers.Position(jnp.asarray(table))
    self.trunk = layers.Trunk(
      size,
      dtype=dtype,
      attention=attention,
      remat=remat,
      unroll=unroll,
      init_std=init_std,
      rngs=rngs,
    )
    self.proj = linear(size.width, encoder_width)

  def __call__(
    self,
    features: jax.Array,
    context: jax.Array,
    context_length: jax.Array,
    target: jax.Array,
    target_length: jax.Array,
    *,
    constrain: layers.Constrain = layers.identity,
  ) -> jax.Array:
    """Predicts every target block, each on its own.

    A sequence is [target queries, context, padding]: valid tokens form a
    prefix, which is what fused attention kernels can mask.

    Args:
      features: the context encoder's output `(B, K, D)`.
      context: `(B, K)` patch numbers of `features`.
      context_length: `(B,)` valid entries of `context`.
      target: `(B, M, T)` patch numbers to predict.
      target_length: scalar, valid entries of every target of the batch.
      constrain: pins the sharding of activations.

    Returns:
      Predictions `(B, M, T, D)`. Rows past `target_length` are meaningless.
    """
    batch, blocks, queries = target.shape
    positions = jax.lax.stop_gradient(self.pos_embed[...])
    # The context's projection does not depend on the block: computed once.
    known = self.embed(features) + positions[context]  # (B, K, W)
    known = jnp.repeat(known, blocks, axis=0)  # (B * M, K, W)
    asked = self.mask_token[...] + positions[target]  # (B, M, T, W)
    asked = asked.reshape(batch * blocks, queries, -1)

    x = jnp.pad(asked, ((0, 0), (0, known.shape[1]), (0, 0)))
    x = jax.lax.dynamic_update_slice(x, known, (0, target_length, 0))
    lengths = jnp.repeat(context_length, blocks) + target_length
    x = self.trunk(x, lengths, constrain=constrain, outputs=queries)
    return self.proj(x).reshape(batch, blocks, queries, -1)
