"""A picture of masks: what the context encoder sees and what is predicted."""

import os
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ijepa_jax.visualize import figure as fig
from ijepa_jax.visualize import patches

MAX_IMAGES = 6
_CELL = 1.7  # inches per image
_MIN_WIDTH = 6.8  # of the page: room for title and legend


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
  width = max(left + n * _CELL + right, _MIN_WIDTH)
  right = width - left - n * _CELL
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
    seen = patches.as_grid(context, grid)
    patches.show(axes[0, i], image)
    patches.show(axes[1, i], patches.fade(image, seen, patch_size))
    patches.outline(axes[1, i], [(fig.INK, seen)], patch_size, 0.8)
    patches.show(
      axes[2, i], patches.fade(image, np.zeros_like(seen), patch_size, 0.35)
    )
    blocks = [patches.as_grid(target, grid) for target in targets]
    patches.outline(
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
    ncols=min(num_targets, max(4, 2 * n)),
    frameon=False,
    fontsize=9,
    borderaxespad=0.4,
    borderpad=0,
  )
  fig.save(figure, path)
