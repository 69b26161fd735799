"""The attentive probe: a learnt query that attends to patch tokens.

V-JEPA's pooler (Bardes et al. 2024, arXiv 2404.08471, `AttentivePooler` with
one block): x = query + attention(query, norm(tokens)), x = x + mlp(norm(x)),
and a linear classifier of x. There is one query, so its products with the keys'
and values' kernels are folded into it: scores are tokens x (D, heads) and
values are made of the pooled tokens. The result is the same, the work per token
falls from 4 D^2 to 4 D heads.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_EPS = 1e-6
_STD = 0.02

Params = dict[str, Any]


def init(rng: np.random.Generator, width: int, classes: int) -> Params:
  """Parameters of one probe of tokens with `width` channels, in numpy."""

  def kernel(*shape: int) -> np.ndarray:
    x = rng.standard_normal(shape)
    while (far := np.abs(x) > 2).any():  # a normal law cut off at 2
      x[far] = rng.standard_normal(far.sum())
    return _STD * x

  def linear(inputs: int, outputs: int) -> Params:
    return {'kernel': kernel(inputs, outputs), 'bias': np.zeros(outputs)}

  def norm() -> Params:
    return {'scale': np.ones(width), 'bias': np.zeros(width)}

  return {
    'query': kernel(width),
    'norm1': norm(),
    'q': linear(width, width),
    'k': linear(width, width),
    'v': linear(width, width),
    'proj': linear(width, width),
    'norm2': norm(),
    'fc1': linear(width, 4 * width),
    'fc2': linear(4 * width, width),
    'head': linear(width, classes),
  }


def logits(params: Params, tokens: jax.Array, heads: int) -> jax.Array:
  """Class scores.

  Args:
    params: of one probe.
    tokens: `(B, N, D)`, as `normalised` returns them.
    heads: H, of the attention.

  Returns:
    `(B, classes)`.
  """
  width = tokens.shape[-1]
  each = width // heads
  scale, shift = params['norm1']['scale'], params['norm1']['bias']
  query = _linear(params['q'], params['query']).reshape(heads, each)
  kernel = params['k']['kernel'].reshape(width, heads, each)
  # What the shift and the key's bias add is the same for all tokens: softmax
  # does not see it.
  folded = jnp.einsum('dhe,he->dh', kernel, query) * scale[:, None]
  scores = jnp.einsum('bnd,dh->bhn', tokens, folded) / each**0.5
  weights = jax.nn.softmax(scores, -1)
  pooled = jnp.einsum('bhn,bnd->bhd', weights, tokens) * scale + shift
  values = params['v']['kernel'].reshape(width, heads, each)
  x = jnp.einsum('bhd,dhe->bhe', pooled, values).reshape(-1, width)
  x = _linear(params['proj'], x + params['v']['bias'])
  x = x + params['query']
  norm2 = params['norm2']
  y = normalised(x) * norm2['scale'] + norm2['bias']
  y = jax.nn.gelu(_linear(params['fc1'], y), approximate=False)
  return _linear(params['head'], x + _linear(params['fc2'], y))


def normalised(x: jax.Array) -> jax.Array:
  """Layer norm without scale and shift, the same for all probes."""
  mean = x.mean(-1, keepdims=True)
  variance = ((x - mean) ** 2).mean(-1, keepdims=True)
  return (x - mean) * jax.lax.rsqrt(variance + _EPS)


def decayed(params: Params) -> Params:
  """What weight decay is for: kernels, not biases, norms and the query."""
  return jax.tree.map(lambda leaf: leaf.ndim == 2, params)


def _linear(params: Params, x: jax.Array) -> jax.Array:
  return x @ params['kernel'] + params['bias']
