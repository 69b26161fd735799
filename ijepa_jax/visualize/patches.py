"""Drawing images, and sets of their patches."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.image import AxesImage

from ijepa_jax.visualize import figure as fig

_FADED = 205.0  # of 255: what is left out stands off from black and from white


def show(axis: Axes, image: np.ndarray) -> None:
  """Draws an image `(S, S, 3)`; the axis is in pixels.

  Small images are enlarged pixel by pixel, large ones made smaller smoothly.
  """
  size = len(image)
  axis.imshow(image, extent=(0, size, size, 0), interpolation='auto')
  frame(axis)


def frame(axis: Axes) -> None:
  """A thin border instead of ticks."""
  axis.set(xticks=[], yticks=[])
  axis.spines[:].set(color=fig.FAINT, linewidth=0.8)


def show_values(
  axis: Axes,
  values: np.ndarray,
  patch_size: int,
  cmap: str,
  limits: tuple[float, float | None],
) -> AxesImage:
  """Draws a value per patch, `(N,)`, where an image would be.

  NaN leaves what is below visible. Returns what a colour bar needs.
  """
  grid = round(len(values) ** 0.5)
  size = grid * patch_size
  drawn = axis.imshow(
    np.ma.masked_invalid(values.reshape(grid, grid)),
    cmap=cmap,
    vmin=limits[0],
    vmax=limits[1],
    extent=(0, size, size, 0),
  )
  frame(axis)
  return drawn


def note(axis: Axes, text: str) -> None:
  """Writes a number into the lower left corner of a tile."""
  axis.text(
    0.04,
    0.04,
    text,
    transform=axis.transAxes,
    fontsize=8,
    color=fig.INK,
    bbox={'facecolor': 'white', 'lw': 0, 'pad': 1.5},
  )


def as_grid(patches: np.ndarray, grid: int) -> np.ndarray:
  """Patch numbers to `(grid, grid)` bool."""
  inside = np.zeros(grid * grid, bool)
  inside[patches] = True
  return inside.reshape(grid, grid)


def cut(images: np.ndarray, patch_size: int) -> np.ndarray:
  """Images `(n, S, S, 3)` to patches `(n, N, P, P, 3)`, row by row."""
  n, size = images.shape[:2]
  grid = size // patch_size
  x = images.reshape(n, grid, patch_size, grid, patch_size, 3)
  return x.swapaxes(2, 3).reshape(n, grid**2, patch_size, patch_size, 3)


def paste(
  image: np.ndarray, patches: np.ndarray, numbers: np.ndarray
) -> np.ndarray:
  """A copy of an image `(S, S, 3)` with some patches `(k, P, P, 3)` replaced.

  Args:
    image: uint8.
    patches: their new pixels.
    numbers: `(k,)` which ones, row by row.
  """
  image = image.copy()
  side = patches.shape[1]
  grid = len(image) // side
  for number, patch in zip(numbers.tolist(), patches, strict=True):
    y, x = (side * i for i in divmod(number, grid))
    image[y : y + side, x : x + side] = patch
  return image


def fade(
  image: np.ndarray, seen: np.ndarray, patch_size: int, strength: float = 0.85
) -> np.ndarray:
  """Fades all but the seen patches towards a grey that few images have.

  Args:
    image: `(S, S, 3)` uint8.
    seen: `(grid, grid)` bool.
    patch_size: side of a patch in pixels.
    strength: 0 leaves the image as it is, 1 hides it.
  """
  keep = np.kron(seen, np.ones((patch_size, patch_size), bool))[..., None]
  faded = image + (_FADED - image) * strength
  return np.where(keep, image, faded).astype(np.uint8)


def outline(
  axis: Axes,
  sets: Sequence[tuple[str, np.ndarray]],
  patch_size: int,
  width: float,
) -> None:
  """Draws the borders of (colour, set of patches), whatever their shape.

  An edge that several sets share is drawn as dashes of all their colours.

  Args:
    axis: that an image was drawn on.
    sets: colours and `(grid, grid)` bool.
    patch_size: side of a patch in pixels.
    width: of the lines in points.
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
