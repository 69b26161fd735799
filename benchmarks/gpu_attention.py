"""Whether attention is right at the shapes of the models.

Tasks of `gpu_check.py`: both implementations, forward and backward.
"""

import dataclasses
import functools
from typing import Any

import gpu_tasks
import jax
import jax.numpy as jnp
import numpy as np
from gpu_correctness import difference

from ijepa_jax.models import attention

# Operands are the same bfloat16 numbers; on a CPU the difference is 3e-3.
_TOLERANCE = 2e-2


@dataclasses.dataclass(frozen=True)
class Shape:
  """One attention of a model.

  Attributes:
    queries: tokens that ask, the first of the sequence.
    keys: tokens of the sequence.
    heads: number of them.
    channels: of a head.
    padded: whether sequences end in padding.
  """

  queries: int
  keys: int
  heads: int
  channels: int
  padded: bool

  def __str__(self) -> str:
    end = ' padded' if self.padded else ''
    return f'{self.queries}x{self.keys}{end}, {self.heads}x{self.channels}'


# The published models at 224 pixels: the target encoder (its
# backward pass is not needed, but tells more), the context encoder, the
# predictor, and the predictor's last block, where only targets ask.
VITH14 = (
  Shape(256, 256, 16, 80, False),  # ViT-H/14
  Shape(70, 70, 16, 80, True),
  Shape(124, 124, 16, 24, True),
  Shape(54, 124, 16, 24, True),
)
OTHERS = (
  Shape(196, 196, 16, 64, False),  # ViT-L/16
  Shape(50, 50, 16, 64, True),
  Shape(90, 90, 16, 24, True),
  Shape(90, 90, 12, 32, True),  # ViT-B/16
  Shape(40, 90, 12, 32, True),
  Shape(196, 196, 16, 88, False),  # ViT-g/16
  Shape(60, 60, 16, 88, True),
  Shape(100, 100, 16, 24, True),
  # Where fused kernels have limits: odd lengths, heads that 8 does not divide,
  # and a length that cuDNN got wrong with masks (64 more than a multiple of
  # 128: pytorch/pytorch issue 196678).
  Shape(125, 125, 16, 24, True),
  Shape(71, 71, 16, 80, True),
  Shape(72, 72, 16, 12, True),
  Shape(192, 192, 16, 64, True),
)
TINY = (Shape(16, 16, 2, 8, False), Shape(6, 14, 2, 12, True))


def check(
  shape: Shape, implementation: str, batch: int, earlier: gpu_tasks.Earlier
) -> gpu_tasks.Result:
  """Output and gradients in bfloat16 against float32, and at the padding."""
  del earlier
  if skipped := gpu_tasks.lacks_cudnn(implementation):
    return skipped
  inputs, lengths = _attention_inputs(shape, batch)
  with jax.default_matmul_precision('highest'):
    exact = _attention('xla', *(x.astype(jnp.float32) for x in inputs), lengths)
  try:
    rounded = _attention(implementation, *inputs, lengths)
  except gpu_tasks.MISTAKES as error:
    # JAX and cuDNN refuse what they cannot do, at compilation at the latest.
    if implementation == 'xla':
      raise
    return gpu_tasks.UNSUPPORTED, gpu_tasks.one_line(error), {}
  return _judge_attention(shape, rounded, exact, lengths)


def _attention_inputs(
  shape: Shape, batch: int
) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
  """Query, key, value, the output's gradient, all bfloat16; lengths."""
  rng = np.random.default_rng(0)
  tokens = (shape.queries, shape.keys, shape.keys, shape.queries)
  arrays = [
    rng.standard_normal((batch, n, shape.heads, shape.channels), np.float32)
    for n in tokens
  ]
  if not shape.padded:
    return tuple(jnp.asarray(x, jnp.bfloat16) for x in arrays), None
  lengths = rng.integers(shape.keys // 3, shape.keys + 1, batch)
  lengths[0] = shape.keys  # one without padding
  for x in arrays[:3]:
    # What is in the padding must not matter, large numbers included.
    x[np.arange(x.shape[1]) >= lengths[:, None]] *= 30
  # As in training: nothing asks what became of the padding.
  arrays[3][np.arange(shape.queries) >= lengths[:, None]] = 0
  return (
    tuple(jnp.asarray(x, jnp.bfloat16) for x in arrays),
    jnp.asarray(lengths, jnp.int32),
  )


@functools.partial(jax.jit, static_argnums=0)
def _attention(
  implementation: str,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  gradient: jax.Array,
  lengths: jax.Array | None,
) -> tuple[jax.Array, ...]:
  """Output, and the gradients of query, key and value."""
  output, pull = jax.vjp(
    lambda *x: attention.attend(*x, lengths, implementation),  # type: ignore
    query,
    key,
    value,
  )
  return output, *pull(gradient)


def _judge_attention(
  shape: Shape,
  rounded: tuple[jax.Array, ...],
  exact: tuple[jax.Array, ...],
  lengths: jax.Array | None,
) -> gpu_tasks.Result:
  """Differences where tokens are valid, and zeros where they are not."""
  values: dict[str, Any] = {'tolerance': _TOLERANCE}
  finite = zero = True
  names = ('output', 'query', 'key', 'value')
  for name, ours, theirs in zip(names, rounded, exact):
    a, b = (np.asarray(x, np.float32) for x in (ours, theirs))
    valid = np.ones(a.shape[:2], bool)
    if lengths is not None:
      valid = np.arange(a.shape[1]) < np.asarray(lengths)[:, None]
    finite &= bool(np.isfinite(a).all())
    if name != 'output':
      zero &= not a[~valid].any()
    values[name] = difference(a[valid], b[valid])
  worst = max(values[name] for name in names)
  values |= {'finite': finite, 'padding_gradient_zero': zero}
  good = finite and zero and worst <= _TOLERANCE
  note = f'off by {worst:.1e} (at most {_TOLERANCE:.0e})'
  note += '' if finite else ', not finite'
  note += '' if zero else ', gradient at the padding is not 0'
  return gpu_tasks.PASS if good else gpu_tasks.FAIL, note, values
