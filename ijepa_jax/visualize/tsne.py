"""A map of images by their features."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CSS4_COLORS
from matplotlib.lines import Line2D

from ijepa_jax import errors
from ijepa_jax.visualize import figure as fig
from ijepa_jax.visualize import patches
from ijepa_jax.visualize.sheet import Sheet

TITLE = 'Which images lie together: t-SNE of their features'
EXPLANATION = (
  'Images, by the average of their patch features, laid out so that near ones '
  'stay near; coloured by label, which neither training nor layout knew.'
)

# Smaller sets have no neighbourhoods.
_LEAST = 10
_PERPLEXITY = 30.0
_PANEL, _KEY = 3.4, 0.75  # inches
_CELLS = 16  # of thumbnails, per side
# Further classes are grey: no more colours can be told apart.
_CLASSES = len(fig.COLORS) + 2
_COLORS = (*fig.COLORS, '#000000', '#8c564b')


def library() -> Any:
  """The class of scikit-learn, or a line that says how to get it."""
  try:
    from sklearn.manifold import TSNE
  except ImportError as error:
    raise errors.UserError(
      't-SNE needs scikit-learn, which is not installed: '
      "pip install -e '.[visualize]'"
    ) from error
  return TSNE


def layout(features: np.ndarray) -> np.ndarray:
  """Places `(n, 2)` of images by their features `(n, D)`, by t-SNE.

  It starts from the principal components, so the same features give the same
  map. Source: van der Maaten & Hinton, JMLR 2008; here scikit-learn's.

  Raises:
    UserError: there are less than 10 images, or scikit-learn is missing.
  """
  if len(features) < _LEAST:
    raise errors.UserError(
      f't-SNE needs at least {_LEAST} images, not {len(features)}'
    )
  method = library()
  perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
  return method(
    init='pca', perplexity=perplexity, random_state=0, n_jobs=1
  ).fit_transform(features)


def draw_tsne(
  path: str | os.PathLike,
  images: np.ndarray,
  places: np.ndarray,
  labels: Mapping[str, np.ndarray],
  classes: Mapping[str, tuple[str, ...]],
) -> None:
  """Draws thumbnails at their places, and the places coloured by each label.

  Args:
    path: of the PNG, written atomically.
    images: `(n, S, S, 3)` uint8.
    places: `(n, 2)`.
    labels: label name to `(n,)` classes, -1 for none.
    classes: label name to the names of its classes.
  """
  panels = 1 + len(labels)
  columns = min(panels, 3)
  rows = -(-panels // columns)
  sheet = Sheet(
    0,
    0,
    title=TITLE,
    text=f'{len(images):,} images; each is a point, by the average of its '
    'patch features. Only what is near says something: distances between far '
    'groups, and directions, mean nothing in t-SNE.'
    + (
      ' Labels were not used; where a colour lies together, features tell this '
      'class from others.'
      if labels
      else ''
    ),
    foot=rows * (_PANEL + _KEY),
    min_width=columns * (_PANEL + 0.2) + 0.3,
  )
  for k, name in enumerate([None, *labels]):
    row, column = divmod(k, columns)
    axis = sheet.foot(
      column * (_PANEL + 0.2),
      _PANEL,
      row * (_PANEL + _KEY) + 0.2,
      _PANEL,
    )
    patches.frame(axis)
    if name is None:
      _draw_thumbnails(axis, images, places)
    else:
      _draw_points(axis, places, name, labels[name], classes[name])
  sheet.save(path)


def _title(axis: Axes, text: str) -> None:
  axis.set_title(text, loc='left', fontsize=9.5, color=fig.INK, weight='bold')


def _draw_thumbnails(
  axis: Axes, images: np.ndarray, places: np.ndarray
) -> None:
  """One image in each cell of a grid, so that none hides another."""
  taken: dict[tuple[int, int], int] = {}
  for number, spot in enumerate(_spots(places)):
    x, y = np.minimum(spot * _CELLS, _CELLS - 1).astype(int).tolist()
    taken.setdefault((x, y), number)
  for (x, y), number in taken.items():
    axis.imshow(images[number], extent=(x + 0.04, x + 0.96, y + 0.04, y + 0.96))
  axis.set(xlim=(-0.3, _CELLS + 0.3), ylim=(-0.3, _CELLS + 0.3))
  _title(axis, f'{len(taken)} of the images')


def _spots(places: np.ndarray) -> np.ndarray:
  """Places scaled to 0..1."""
  low, high = places.min(0), places.max(0)
  return (places - low) / np.maximum(high - low, 1e-12)


def _draw_points(
  axis: Axes,
  places: np.ndarray,
  name: str,
  labels: np.ndarray,
  classes: tuple[str, ...],
) -> None:
  """Points coloured by class; the commonest get the colours."""
  spots = _spots(places)
  counts = np.bincount(labels[labels >= 0], minlength=len(classes))
  commonest = sorted(np.argsort(-counts, kind='stable')[:_CLASSES].tolist())
  palette: Sequence[str] = _COLORS
  if all(classes[number] in CSS4_COLORS for number in commonest):
    palette = [classes[number] for number in commonest]  # such as red, blue
  groups = [
    (labels == number, color, classes[number])
    for number, color in zip(commonest, palette)
  ]
  other = ~np.isin(labels, commonest)
  if other.any():
    groups.insert(0, (other, fig.FAINT, 'others'))
  handles = []
  for mine, color, title in groups:
    x, y = spots[mine].T
    axis.scatter(x, y, s=14, color=color, linewidths=0.3, edgecolors=fig.MUTED)
    handles.append(_key(color, title))
  axis.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
  _title(axis, f'by "{name}"')
  # Names are cut at 14 letters; three such columns fill a panel.
  columns = 4 if max(len(name) for name in classes) < 10 else 3
  axis.legend(
    handles=handles, loc='upper left', bbox_to_anchor=(0, 0), ncols=columns,
    frameon=False, fontsize=7, handletextpad=0.1, columnspacing=0.8,
    borderpad=0.2, labelcolor=fig.INK,
  )  # fmt: skip


def _key(color: str, name: str) -> Line2D:
  short = name if len(name) <= 14 else name[:13] + '…'
  return Line2D(
    [], [], color=color, marker='o', markersize=4, linewidth=0, label=short,
    markeredgewidth=0.3, markeredgecolor=fig.MUTED,
  )  # fmt: skip
