"""What the heads of an encoder look at."""

import os

import numpy as np

from ijepa_jax.visualize import figure as fig
from ijepa_jax.visualize import patches
from ijepa_jax.visualize.sheet import Sheet

TITLE = 'Where the encoder looks: attention by block and head'
EXPLANATION = (
  'From which patches each head of each block takes what it adds to one patch, '
  'and from how many.'
)

_BLOCKS = 6
_HEADS = 6


def blocks_to_draw(depth: int) -> tuple[int, ...]:
  """At most 6 of the blocks, the first and the last among them."""
  count = min(depth, _BLOCKS)
  return tuple(np.linspace(0, depth - 1, count).round().astype(int).tolist())


def looked_at(weights: np.ndarray) -> np.ndarray:
  """How many patches attention is spread over: exp of its entropy.

  Args:
    weights: `(..., N)`, the last axis sums to 1.

  Returns:
    From 1 (a single patch) to N (all alike).
  """
  logs = np.log(np.maximum(weights, 1e-30))
  return np.exp(-(weights * logs).sum(-1))


def draw_attention(
  path: str | os.PathLike,
  image: np.ndarray,
  weights: dict[int, np.ndarray],
  patch: int,
  depth: int,
) -> None:
  """Draws attention from a patch, a row per block and a column per head.

  Args:
    path: of the PNG, written atomically.
    image: `(S, S, 3)` uint8.
    weights: by block from 0, `(H, N, N)`, asking patch first.
    patch: number of the one that asks, row by row.
    depth: blocks of the encoder.
  """
  heads, length, _ = next(iter(weights.values())).shape
  grid = round(length**0.5)
  side = len(image) // grid
  # Heads are in no order: evenly spaced ones are as good as any.
  chosen = np.linspace(0, heads - 1, min(heads, _HEADS)).round().astype(int)
  names = [f'head {head}' for head in chosen.tolist()]
  sheet = Sheet(
    len(weights),
    len(chosen) + 2,
    title=TITLE,
    text=f'The outlined patch (row {patch // grid}, column {patch % grid}) '
    'asks; brightness is the weight it gives to each patch, which sum to 1. '
    'Each map has its own scale, from 0 to its largest weight. The number says '
    'over how many patches attention is spread (exp of the entropy): '
    f'{length} would be all alike, 1 a single patch. Last column: the mean '
    f'over all {heads} heads and all asking patches, so what is looked at most '
    'whoever asks.',
    tile=1.2,
    headings=['image', *names, 'mean of all'],
    foot=0.0,
  )
  asked = patches.as_grid(np.array([patch]), grid)
  for row, (block, attention) in enumerate(weights.items()):
    axis = sheet.tile(row, 0)
    patches.show(axis, image)
    patches.outline(axis, [(fig.INK, asked)], side, 3)
    patches.outline(axis, [(fig.COLORS[6], asked)], side, 1.5)
    maps = [attention[head, patch] for head in chosen]
    spreads = [float(looked_at(values)) for values in maps]
    maps.append(attention.mean((0, 1)))
    spreads.append(float(looked_at(attention).mean()))
    for column, (values, spread) in enumerate(zip(maps, spreads), 1):
      axis = sheet.tile(row, column)
      patches.show_values(axis, values, side, 'magma', (0, None))
      if column <= len(chosen):
        patches.outline(axis, [(fig.COLORS[6], asked)], side, 1)
      patches.note(axis, f'{spread:.0f}')
    sheet.label(row, f'block {block}', f'of 0 to {depth - 1}')
  sheet.save(path)
