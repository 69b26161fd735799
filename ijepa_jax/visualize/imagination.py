"""What the predictor imagines in the holes, shown with real patches."""

import itertools
import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from ijepa_jax.data.masks import Masks
from ijepa_jax.visualize import figure as fig
from ijepa_jax.visualize import patches, verdict
from ijepa_jax.visualize.bank import Bank
from ijepa_jax.visualize.prediction import Hole, block_cosines, cosine, holes
from ijepa_jax.visualize.sheet import Sheet

TITLE = 'What the predictor imagines'
EXPLANATION = (
  'The target blocks, filled with the real patches of other images whose '
  'features are nearest to the predicted ones; beside it what the true '
  'features would give, and what a predictor with random weights says.'
)

_ROWS = (
  ('image', 'the truth'),
  ('context', 'what the predictor\nis given'),
  ('imagined', 'patches nearest to\nits predictions'),
  ('best possible', 'nearest to the\ntrue features'),
  ('control', 'nearest to what\na random predictor\nsays'),
  ('how right', 'cosine of predicted\nand true features'),
)
_CMAP = 'viridis'


def draw_imagination(
  path: str | os.PathLike,
  images: np.ndarray,
  targets: np.ndarray,
  labels: Mapping[str, np.ndarray],
  masks: Masks,
  predictions: Mapping[str, np.ndarray],
  drawn: int,
) -> dict[str, float]:
  """Draws holes, filled by predictions, beside the truth and controls.

  Args:
    path: of the PNG, written atomically.
    images: `(n, S, S, 3)` uint8.
    targets: `(n, N, D)` as the loss sees them, of all images.
    labels: label name to classes `(n,)`, -1 for none.
    masks: of the first B images.
    predictions: `(B, M, T, D)` of their blocks: `trained`; `swapped`, given
      the pixels of other images; `untrained`, by random weights.
    drawn: images to draw, at most B; holes are filled with patches of the
      images after B.

  Returns:
    By kind, the mean cosine with the truth; by `kind/label`, how often the
    nearest patch is of an image with the same label.
  """
  grid = round(targets.shape[1] ** 0.5)
  side = images.shape[1] // grid
  masked = len(masks.context)
  bank = Bank(images[masked:], targets[masked:], side)
  cosines = {
    kind: block_cosines(guess, targets[:masked], masks)
    for kind, guess in predictions.items()
  }
  trained, untrained = (
    holes(predictions[kind][:drawn], masks) for kind in ('trained', 'untrained')
  )
  sheet = Sheet(
    len(_ROWS),
    drawn,
    title=TITLE,
    text='The predictor sees the context and says, patch by patch, which '
    'features the target encoder will have in the outlined blocks. Each hole '
    f'is filled with real patches, out of the {len(bank.features):,} of '
    f'{len(images) - masked:,} other images: those whose features are nearest '
    'to what it said. So this is what it means, not what it would paint. "Best '
    'possible" does the same with the true features. Where blocks overlap, '
    'the mean of their predictions is taken.',
    foot=2.6,
  )
  for i, image in enumerate(images[:drawn]):
    seen = masks.context[i, : masks.context_length[i]]
    axes = [sheet.tile(row, i) for row in range(len(_ROWS))]
    _draw_column(
      axes, image, seen, trained[i], untrained[i].features,
      targets[i, trained[i].patches], bank,
    )  # fmt: skip
  for row, (name, meaning) in enumerate(_ROWS):
    sheet.label(row, name, meaning)
  sheet.color_bar(
    ScalarMappable(Normalize(0, 1), _CMAP),
    'cosine of predicted and true features (0 and below: dark)',
    ticks=(0, 0.5, 1),
  )
  half = (sheet.width - 2.2) / 2
  below = {'top': 0.95, 'height': 1.15, 'width': half}
  verdict.draw_cosines(sheet.foot(-0.6, **below), cosines, masked)
  figures = {kind: float(values.mean()) for kind, values in cosines.items()}
  if labels:
    shares, chances = verdict.agreements(
      bank, labels, targets, masks, predictions
    )
    verdict.draw_agreements(sheet.foot(half + 0.6, **below), shares, chances)
    figures |= {
      f'{kind}/{label}': share
      for kind, by_label in {**shares, 'chance': chances}.items()
      for label, share in by_label.items()
      if np.isfinite(share)
    }
  sheet.save(path)
  return figures


def _draw_column(
  axes: Sequence[Axes],
  image: np.ndarray,
  seen: np.ndarray,
  hole: Hole,
  control: np.ndarray,
  truth: np.ndarray,
  bank: Bank,
) -> None:
  """Draws one image, a tile for each of `_ROWS`.

  Args:
    axes: of the tiles.
    image: `(S, S, 3)` uint8.
    seen: patch numbers of the context.
    hole: what was predicted of its k patches.
    control: `(k, D)`, the same by a random predictor.
    truth: `(k, D)` targets.
    bank: to fill the hole from.
  """
  side, places = bank.patch_size, hole.patches
  grid = len(image) // side
  given = patches.fade(image, patches.as_grid(seen, grid), side, 1.0)
  nothing = np.zeros((grid, grid), bool)
  for axis, canvas in zip(
    axes,
    (
      image,
      given,
      bank.fill(given, places, hole.features),
      bank.fill(given, places, truth),
      bank.fill(given, places, control),
      patches.fade(image, nothing, side),
    ),
    strict=True,
  ):
    patches.show(axis, canvas)
  alike = cosine(hole.features, truth)
  field = np.full(grid**2, np.nan)
  field[places] = alike
  patches.show_values(axes[-1], field, side, _CMAP, (0, 1))
  patches.note(axes[-1], fig.two_places(alike.mean()))
  blocks = [patches.as_grid(block, grid) for block in hole.blocks]
  for axis in axes:
    patches.outline(
      axis, list(zip(itertools.cycle(fig.COLORS), blocks)), side, 1.4
    )
