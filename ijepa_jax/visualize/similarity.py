"""Which patches look like a given one to the encoder."""

import os

import numpy as np
from matplotlib.axes import Axes

from ijepa_jax.visualize import figure as fig
from ijepa_jax.visualize import patches
from ijepa_jax.visualize.neighbours import nearest
from ijepa_jax.visualize.prediction import cosine
from ijepa_jax.visualize.sheet import Sheet

TITLE = 'What is like one patch: cosine similarity of features'
EXPLANATION = (
  'How similar the features of one patch are to those of all others, in its '
  'own image and in others, and the most similar patches of all images.'
)

# Patches around one that is shown, on each side.
_AROUND = 1


def draw_similarity(
  path: str | os.PathLike,
  images: np.ndarray,
  features: np.ndarray,
  patch: int,
  drawn: int,
) -> None:
  """Draws maps of similarity to a patch of the first image.

  Args:
    path: of the PNG, written atomically.
    images: `(n, S, S, 3)` uint8; the first is asked about.
    features: `(n, N, D)` of their patches.
    patch: number of the patch, row by row.
    drawn: images that are drawn; the nearest patches come from the others.
  """
  grid = round(features.shape[1] ** 0.5)
  side = images.shape[1] // grid
  columns = min(max(drawn, 3), len(images))
  # Around the mean, or all features look alike: 0 is what two patches have in
  # common by chance.
  centred = features - features.mean((0, 1))
  alike = cosine(centred[:columns], centred[0, patch])
  own = features[:columns] - features[:columns].mean(1, keepdims=True)
  beyond = cosine(own, own[0, patch])
  rows = 4 if len(images) > columns else 3
  sheet = Sheet(
    rows,
    columns,
    title=TITLE,
    text=f'Patch (row {patch // grid}, column {patch % grid}) of the first '
    'image, outlined, against every patch. 1: the same direction, 0: '
    f'unrelated; the mean feature of all {len(images):,} images is taken off '
    "before. Second map: each image's own mean is taken off instead, so what "
    'all its patches share no longer counts. Last row: the images, not drawn '
    'above, with the most similar patches, each in its surroundings.',
    foot=0.65,
  )
  asked = patches.as_grid(np.array([patch]), grid)
  for i in range(columns):
    axis = sheet.tile(0, i)
    patches.show(axis, images[i])
    if i == 0:
      patches.outline(axis, [(fig.COLORS[6], asked)], side, 2.5)
      patches.outline(axis, [(fig.INK, asked)], side, 1)
    for row, values in ((1, alike), (2, beyond)):
      axis = sheet.tile(row, i)
      shown = patches.show_values(axis, values[i], side, 'RdBu_r', (-1, 1))
      if i == 0:
        patches.outline(axis, [(fig.INK, asked)], side, 1)
  if rows == 4:
    others = centred[columns:].reshape(-1, features.shape[-1])
    found = nearest(centred[0, patch][None], others, len(others))[0]
    _, best = np.unique(found // grid**2, return_index=True)  # of each image
    found = found[np.sort(best)][:columns]
    values = cosine(others[found], centred[0, patch])
    for i, (number, value) in enumerate(zip(found.tolist(), values)):
      image, place = divmod(number, grid**2)
      axis = sheet.tile(3, i)
      _show_around(axis, images[columns + image], place, grid, side)
      patches.note(axis, fig.two_places(value))
    sheet.label(3, 'most similar\npatches', 'of other images')
  sheet.label(0, 'image')
  sheet.label(1, 'similarity')
  sheet.label(2, 'beyond the\nimage', "without each\nimage's mean")
  sheet.color_bar(shown, 'cosine similarity', ticks=(-1, -0.5, 0, 0.5, 1))
  sheet.save(path)


def _show_around(
  axis: Axes, image: np.ndarray, place: int, grid: int, side: int
) -> None:
  """Draws a patch, outlined, with its surroundings."""
  row, column = divmod(place, grid)
  width = min(2 * _AROUND + 1, grid)
  top, left = (
    int(np.clip(i - _AROUND, 0, grid - width)) for i in (row, column)
  )
  part = image[
    top * side : (top + width) * side, left * side : (left + width) * side
  ]
  patches.show(axis, part)
  inside = np.zeros((width, width), bool)
  inside[row - top, column - left] = True
  patches.outline(axis, [(fig.INK, inside)], side, 1.2)
