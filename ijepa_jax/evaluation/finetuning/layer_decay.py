"""Layer-wise learning rates: the nearer to the image, the slower.

Source: Clark et al. 2020, arXiv 2003.10555; as in BEiT and MAE
(`util/lr_decay.py`): head and final norm have the full rate, each block below
is slower by a factor, and the patch embedding is slowest.
"""

import re

import jax
import jax.numpy as jnp

from ijepa_jax import sharding


def scales(params: dict, decay: float, depth: int) -> dict:
  """Factors on the learning rate, one tree like that of the parameters.

  Args:
    params: of a fine-tuned model: `encoder`, if it has one, and `head`.
    decay: factor per layer, 1 for none.
    depth: blocks of the encoder.

  Returns:
    Scalars; for the blocks, which are stacked, `(depth, 1, ...)`.
  """
  blocks = decay ** (depth - jnp.arange(depth, dtype=jnp.float32))

  def scale(path: jax.tree_util.KeyPath, leaf: jax.Array) -> jax.Array:
    name = sharding.path_name(path)
    if re.search('encoder/(patch_embed|pos_embed)', name):
      return jnp.float32(decay ** (depth + 1))
    if 'encoder/trunk/blocks/' in name:
      return blocks.reshape(-1, *(1,) * (leaf.ndim - 1))
    return jnp.float32(1)

  return jax.tree.map_with_path(scale, params)
