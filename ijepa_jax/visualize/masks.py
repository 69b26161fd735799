"""A picture of masks: what the context encoder sees and what is predicted."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ijepa_jax.visualize import figure as fig

MAX_IMAGES = 6
_CELL = 1.7  # inches per image
_FADED = 205.0  # of 255: what is left out stands off from black and from white


def draw_masks(
  path: str | os.PathLike,
  images: np.ndarray,
  batch: Mapping[str, np.ndarray],
  patch_size: int,
) -> None:
  """Draws the masks of the first images of a batch.

  One column per image: the image, the patches the context encoder sees, and
  the target blocks.

  Args:
    path: of the PNG, written atomically.
    images: (n, S, S, 3) uint8, the first 6 are drawn.
    batch: context (n, K), context_length (n,), target (n, M, T) and
      target_length (n,): row-major patch numbers, padded to K and T.
    patch_size: side of a patch in pixels.
  """
  images = images[:MAX_IMAGES]
  n, size = len(images), images.shape[1]
  grid = size // patch_size
  num_targets = batch['target'].shape[1]
  colors = [fig.COLORS[m % len(fig.COLORS)] for m in range(num_targets)]

  left, right, top, bottom = 1.35, 0.15, 0.6, 0.5  # inches
  width = left + n * _CELL + right
  height = top + 3 * _CELL + bottom
  figure = Figure(figsize=(width, height))
  axes = figure.subplots(
    3,
    n,
    squeeze=False,
    gridspec_kw={
      'left': left / width,
      'right': 1 - right / width,
      'top': 1 - top / height,
      'bottom': bottom / height,
      'wspace': 0.06,
      'hspace': 0.06,
    },
  )
  for i, image in enumerate(images):
    context = batch['context'][i, : batch['context_length'][i]]
    targets = batch['target'][i, :, : batch['target_length'][i]]
    seen = _as_grid(context, grid)
    _show(axes[0, i], image)
    _show(axes[1, i], _dim(image, seen, patch_size))
    _outline(axes[1, i], [(fig.INK, seen)], patch_size, 0.8)
    _show(axes[2, i], _dim(image, np.zeros_like(seen), patch_size, 0.35))
    blocks = [_as_grid(target, grid) for target in targets]
    _outline(
      axes[2, i], list(zip(colors, blocks, strict=True)), patch_size, 2.2
    )

  rows = (
    ('image', f'{size} × {size} pixels,\n{grid} × {grid} patches'),
    ('context', 'what the encoder\nsees'),
    ('targets', 'what is predicted\nfrom the context'),
  )
  for axis, (name, meaning) in zip(axes[:, 0], rows, strict=True):
    axis.text(
      -0.08, 0.53, name, transform=axis.transAxes, ha='right', va='bottom',
      fontsize=11, color=fig.INK, weight='bold',
    )  # fmt: skip
    axis.text(
      -0.08, 0.48, meaning, transform=axis.transAxes, ha='right', va='top',
      fontsize=8, color=fig.MUTED,
    )  # fmt: skip
  figure.text(
    left / width, 1 - 0.38 / height,
    'I-JEPA masks: the coloured blocks are predicted from the context',
    fontsize=12, color=fig.INK, va='bottom',
  )  # fmt: skip
  figure.legend(
    handles=[
      Line2D([], [], color=color, linewidth=2.2, label=f'target {m + 1}')
      for m, color in enumerate(colors)
    ],
    loc='lower left',
    bbox_to_anchor=(left / width, 0.05 / height),
    ncols=min(num_targets, 2 * n),
    frameon=False,
    fontsize=9,
    borderaxespad=0.4,
    borderpad=0,
  )
  fig.save(figure, path)


def _as_grid(patches: np.ndarray, grid: int) -> np.ndarray:
  """Patch numbers -> (grid, grid) bool."""
  inside = np.zeros(grid * grid, bool)
  inside[patches] = True
  return inside.reshape(grid, grid)


def _dim(
  image: np.ndarray, seen: np.ndarray, patch_size: int, strength: float = 0.85
) -> np.ndarray:
  """Fades all but the seen patches towards a grey that few images have."""
  keep = np.kron(seen, np.ones((patch_size, patch_size), bool))[..., None]
  faded = image + (_FADED - image) * strength
  return np.where(keep, image, faded).astype(np.uint8)


def _show(axis: Axes, image: np.ndarray) -> None:
  size = len(image)
  axis.imshow(image, extent=(0, size, size, 0), interpolation='nearest')
  axis.set(xticks=[], yticks=[])
  axis.spines[:].set(color=fig.FAINT, linewidth=0.8)


def _outline(
  axis: Axes,
  sets: Sequence[tuple[str, np.ndarray]],
  patch_size: int,
  width: float,
) -> None:
  """Draws the borders of (colour, set of patches), whatever their shape.

  An edge that several sets share is drawn as dashes of all their colours.
  """
  owners: dict[tuple, list[str]] = {}
  for color, inside in sets:
    for edge in _edges(inside):
      owners.setdefault(edge, []).append(color)
  pieces, piece_colors = [], []
  for (start, end), colors in owners.items():
    ends = np.linspace(start, end, len(colors) + 1) * patch_size
    pieces += list(itertools.pairwise(ends))
    piece_colors += colors
  axis.add_collection(
    LineCollection(
      pieces,
      colors=piece_colors,
      linewidths=width,
      capstyle='projecting',
      clip_on=False,
    )
  )


def _edges(inside: np.ndarray) -> Iterator[tuple]:
  """Unit edges ((x, y), (x, y)) between patches inside and outside."""
  padded = np.pad(inside, 1)
  for y, x in np.argwhere(padded[:-1, 1:-1] != padded[1:, 1:-1]).tolist():
    yield (x, y), (x + 1, y)
  for y, x in np.argwhere(padded[1:-1, :-1] != padded[1:-1, 1:]).tolist():
    yield (x, y), (x, y + 1)
