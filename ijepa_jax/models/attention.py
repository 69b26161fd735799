"""Softmax attention, and its weights by themselves."""

from typing import Literal

import jax
import jax.numpy as jnp

from ijepa_jax.models import elementwise

# Added to the logits of tokens that are not to be looked at.
_MASKED = -1e30


def attend(
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
  looks = weights(query, key, lengths, value.dtype)
  return jnp.einsum('bhqk,bkhd->bqhd', looks, value)


def weights(
  query: jax.Array,
  key: jax.Array,
  lengths: jax.Array | None,
  dtype: jnp.dtype,
) -> jax.Array:
  """How much each query looks at each of the tokens.

  Args:
    query: `(B, Q, H, D)`.
    key: `(B, N, H, D)`.
    lengths: `(B,)` int32 valid tokens, or None when all are valid.
    dtype: of the result.

  Returns:
    `(B, H, Q, N)`; a row sums to 1.
  """
  logits = jnp.einsum(
    'bqhd,bkhd->bhqk', query, key, preferred_element_type=jnp.float32
  )
  logits *= query.shape[-1] ** -0.5
  if lengths is not None:
    valid = jnp.arange(key.shape[1]) < lengths[:, None, None, None]
    # Added, not selected: the backward pass has nothing to do.
    logits += jnp.where(valid, 0.0, _MASKED)
  return elementwise.softmax(logits, dtype)
