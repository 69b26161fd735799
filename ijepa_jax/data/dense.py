"""What dense tasks read beside images: a class per pixel, or boxes.

Records are those of any source. Masks and boxes are read apart, by record
number, and only by who needs them.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from ijepa_jax.data import sources

# Of a mask: pixels that nothing is said about.
IGNORED = 255


class Boxes(NamedTuple):
  """The n boxes of an image.

  Attributes:
    corners: (n, 4) float32, x0, y0, x1, y1 as shares of the image's width and
      height; x points right, y down.
    classes: (n,) int32, positions in the source's `box_classes`.
    crowd: (n,) bool, whether a box is around many objects (COCO's `iscrowd`).
  """

  corners: np.ndarray
  classes: np.ndarray
  crowd: np.ndarray


@runtime_checkable
class Masked(sources.Source, Protocol):
  """A source with a class for every pixel.

  `mask_classes` are the names of the classes from 0; empty when unknown.
  """

  @property
  def mask_classes(self) -> tuple[str, ...]: ...

  def mask(self, index: int) -> np.ndarray:
    """Returns (H, W) uint8, as large as the image; `IGNORED` is no class."""


@runtime_checkable
class Boxed(sources.Source, Protocol):
  """A source with boxes around objects of named classes."""

  @property
  def box_classes(self) -> tuple[str, ...]: ...

  def boxes(self, index: int) -> Boxes: ...

  def size(self, index: int) -> tuple[int, int]:
    """(width, height) of an image in pixels, upright."""
