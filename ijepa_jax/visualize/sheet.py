"""A page of small pictures in rows and columns that says what it shows."""

import os
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from ijepa_jax.visualize import figure as fig

# Inches.
_LEFT, _RIGHT, _EDGE, _GAP = 1.25, 0.25, 0.15, 0.07
_TITLE, _LINE, _HEADING = 0.34, 0.175, 0.17
_MIN_WIDTH = 7.2  # the longest title has room
# Characters of 9 points that fit in an inch, in the mean.
_PER_INCH = 14.5
_PROSE = '#555555'


class Sheet:
  """Tiles in rows and columns, a title, and text that explains them.

  Everything is placed in inches, so pages of any number of tiles look alike.

  Attributes:
    width: of the page.
  """

  def __init__(
    self,
    rows: int,
    columns: int,
    *,
    title: str,
    text: str,
    tile: float = 1.45,
    headings: Sequence[str] = (),
    foot: float = 0.0,
    min_width: float = 0.0,
  ):
    """Makes an empty page.

    Args:
      rows: of tiles.
      columns: of tiles.
      title: what the page shows.
      text: what the numbers and colours mean; it is wrapped.
      tile: side of a tile in inches.
      headings: of the columns; line breaks are kept.
      foot: inches below the tiles, for colour bars and other axes.
      min_width: of the page in inches, where titles need less.
    """
    self._inset = _LEFT if rows else _EDGE
    self.width = max(
      _MIN_WIDTH,
      min_width,
      self._inset + columns * (tile + _GAP) - _GAP + _RIGHT,
    )
    lines = textwrap.wrap(text, int((self.width - 2 * _EDGE) * _PER_INCH))
    heading_lines = max((h.count('\n') + 1 for h in headings), default=0)
    above = _EDGE + _TITLE + len(lines) * _LINE
    self._top = above + 0.14 + heading_lines * _HEADING
    self._tile, self._foot = tile, foot
    tiles = rows * (tile + _GAP)
    self.height = self._top + tiles + foot + _EDGE
    self.figure = Figure(figsize=(self.width, self.height))
    self._text(_EDGE, _EDGE, title, 'top', fontsize=13, weight='bold')
    self._text(
      _EDGE, _EDGE + _TITLE, '\n'.join(lines), 'top',
      fontsize=9, color=_PROSE, linespacing=1.3,
    )  # fmt: skip
    for column, heading in enumerate(headings):
      x = self._left(column) + tile / 2
      self._text(
        x, self._top - 0.05, heading, 'bottom', ha='center', fontsize=9,
        linespacing=1.15,
      )  # fmt: skip

  def tile(self, row: int, column: int) -> Axes:
    """The axes of a tile."""
    y = self._top + row * (self._tile + _GAP)
    return self._axes(self._left(column), y, self._tile, self._tile)

  def label(self, row: int, name: str, meaning: str = '') -> None:
    """Writes what a row is, on its left."""
    middle = self._top + row * (self._tile + _GAP) + self._tile / 2
    x = self._inset - 0.09
    self._text(
      x, middle - 0.02, name, 'bottom', ha='right', fontsize=9.5,
      weight='bold', linespacing=1.1,
    )  # fmt: skip
    self._text(
      x, middle + 0.03, meaning, 'top', ha='right', fontsize=7.5,
      color=_PROSE, linespacing=1.2,
    )  # fmt: skip

  def foot(self, left: float, width: float, top: float, height: float) -> Axes:
    """Axes below the tiles; inches from their lower left corner."""
    return self._axes(
      self._inset + left, self.height - _EDGE - self._foot + top, width, height
    )

  def color_bar(
    self,
    mappable: ScalarMappable,
    label: str,
    ticks: Sequence[float] | None = None,
  ) -> None:
    """Draws the scale of a colour map in the foot; it takes 0.65 inches."""
    axis = self.foot(0.0, 3.0, 0.22, 0.12)
    bar = self.figure.colorbar(
      mappable, cax=axis, orientation='horizontal', ticks=ticks
    )
    bar.outline.set_visible(False)
    axis.tick_params(labelsize=8, colors=fig.MUTED, length=2, pad=2)
    axis.set_title(label, fontsize=8.5, color=fig.INK, loc='left', pad=3)

  def save(self, path: str | os.PathLike) -> None:
    """Writes the PNG; errors as of `figure.save`."""
    fig.save(self.figure, path)

  def _left(self, column: int) -> float:
    return self._inset + column * (self._tile + _GAP)

  def _axes(self, x: float, y: float, width: float, height: float) -> Axes:
    """Axes by their upper left corner, in inches from that of the page."""
    return self.figure.add_axes(
      (
        x / self.width,
        1 - (y + height) / self.height,
        width / self.width,
        height / self.height,
      )
    )

  def _text(self, x: float, y: float, text: str, va: str, **style: Any) -> None:
    style = {'color': fig.INK, 'ha': 'left'} | style
    self.figure.text(x / self.width, 1 - y / self.height, text, va=va, **style)


def unit_range(values: np.ndarray) -> np.ndarray:
  """Scales each channel of `(..., C)` to 0..1; 1 % at either end is clipped."""
  rows = values.reshape(-1, values.shape[-1])
  low, high = np.percentile(rows, [1, 99], axis=0)
  return np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)
