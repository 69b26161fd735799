"""Floating-point operations of a training step, counted by hand.

Two per multiply-add, matrix products only, a backward pass as two forward
passes; padding is not useful work and is not counted. Agrees with PyTorch's
FLOP counter on the reference within 1 %: it is the method's work, with the
context tokens in the predictor's last block, which we need not compute.
"""

from ijepa_jax.models import sizes


def trunk_flops(size: sizes.Size, tokens: float) -> float:
  """Forward pass of all blocks over one sequence of `tokens`."""
  weights = 4 * size.width**2 + 2 * size.width * size.hidden
  return size.depth * tokens * (2 * weights + 4 * tokens * size.width)


def step_flops(
  encoder: sizes.Size,
  predictor: sizes.Size,
  *,
  patch_size: int,
  patches: int,
  context_tokens: float,
  target_tokens: float,
  num_targets: int,
) -> float:
  """Training step per image.

  Args:
    encoder: its size.
    predictor: its size.
    patch_size: side of a patch in pixels.
    patches: patches of the whole image, `N`.
    context_tokens: mean valid tokens of a context.
    target_tokens: mean valid tokens of one target block.
    num_targets: target blocks per image, `M`.

  Returns:
    Operations: target encoder forward, context encoder and predictor forward
    and backward.
  """
  embed = 2 * 3 * patch_size**2 * encoder.width

  def encode(tokens: float) -> float:
    return tokens * embed + trunk_flops(encoder, tokens)

  projections = 2 * encoder.width * predictor.width
  predict = context_tokens * projections + num_targets * (
    trunk_flops(predictor, context_tokens + target_tokens)
    + target_tokens * projections
  )
  return encode(patches) + 3 * (encode(context_tokens) + predict)
