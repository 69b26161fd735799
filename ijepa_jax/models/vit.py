"""The encoder: a vision transformer without class token (paper, section 3)."""

from collections.abc import Collection
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from ijepa_jax.models import layers, sizes


class Encoder(nnx.Module):
  """Vision transformer over all patches of an image, or over some of them."""

  def __init__(
    self,
    size: sizes.Size,
    *,
    patch_size: int,
    image_size: int,
    dtype: jnp.dtype = jnp.float32,
    attention: Literal['xla', 'cudnn'] = 'xla',
    remat: str = 'none',
    unroll: bool = False,
    init_std: float = layers.INIT_STD,
    drop_path: float = 0.0,
    rngs: nnx.Rngs,
  ):
    """Makes an encoder for square images.

    Args:
      size: width, depth, heads, MLP ratio.
      patch_size: side of a patch in pixels.
      image_size: side of the image in pixels, a multiple of `patch_size`.
      dtype: type of the matrix products.
      attention: `'xla'` or `'cudnn'`.
      remat: `'none'`, `'dots'` or `'full'`.
      unroll: unroll the loop over blocks.
      init_std: of kernels and mask token.
      drop_path: rate at the last block, rising linearly from 0 at the first.
      rngs: randomness of the initialisation.
    """
    self.patch_size = patch_size
    self.patch_embed = layers.Linear(
      3 * patch_size**2,
      size.width,
      dtype=dtype,
      init_std=init_std,
      rngs=rngs,
    )
    grid = image_size // patch_size
    table = layers.sincos_positions(size.width, grid)
    self.pos_embed = layers.Position(jnp.asarray(table))
    self.trunk = layers.Trunk(
      size,
      dtype=dtype,
      attention=attention,
      remat=remat,
      unroll=unroll,
      init_std=init_std,
      drop_path=drop_path,
      rngs=rngs,
    )

  def __call__(
    self,
    images: jax.Array,
    context: jax.Array | None = None,
    context_length: jax.Array | None = None,
    *,
    constrain: layers.Constrain = layers.identity,
    key: jax.Array | None = None,
  ) -> jax.Array:
    """Encodes images.

    Args:
      images: normalised, `(B, H, W, 3)`; sides of as many patches as the
        positions are for.
      context: `(B, K)` patch numbers to look at, or None for all of them.
      context_length: `(B,)` valid entries of `context`, or None for all.
      constrain: pins the sharding of activations.
      key: randomness of drop path; None turns it off.

    Returns:
      Features `(B, N, D)` or `(B, K, D)`, float32, after the final norm.
      Rows past `context_length` are meaningless.
    """
    x = patchify(images, self.patch_size)  # (B, N, P * P * 3)
    positions = jax.lax.stop_gradient(self.pos_embed[...])
    if context is not None:
      # Gathering the pixels first leaves K instead of N patches to embed.
      x = jnp.take_along_axis(x, context[..., None], axis=1)
      positions = positions[context]
    x = self.patch_embed(x) + positions
    return self.trunk(x, context_length, constrain=constrain, key=key)

  def intermediate(
    self, images: jax.Array, layers: Collection[int]
  ) -> dict[int, jax.Array]:
    """Features `(B, N, D)` after some blocks and the final norm, by block."""
    return self.trunk.intermediate(self._embed(images), layers)

  def attention_weights(
    self, images: jax.Array, layers: Collection[int]
  ) -> dict[int, jax.Array]:
    """What patches look at, `(B, H, N, N)`, by block (`Trunk`)."""
    return self.trunk.attention_weights(self._embed(images), layers)

  def _embed(self, images: jax.Array) -> jax.Array:
    """Tokens `(B, N, D)` of all patches."""
    x = patchify(images, self.patch_size)
    return self.patch_embed(x) + jax.lax.stop_gradient(self.pos_embed[...])


def patchify(images: jax.Array, patch_size: int) -> jax.Array:
  """Cuts `(B, H, W, 3)` images into row-major patches `(B, N, P * P * 3)`.

  A patch is flattened as (row, column, channel), the layout of a `(P, P, 3,
  D)` convolution kernel, so that the embedding is one matrix product.
  """
  batch, height, width, channels = images.shape
  rows, columns = height // patch_size, width // patch_size
  x = images.reshape(batch, rows, patch_size, columns, patch_size, channels)
  x = x.transpose(0, 1, 3, 2, 4, 5)  # (B, rows, columns, P, P, C)
  return x.reshape(batch, rows * columns, patch_size**2 * channels)
