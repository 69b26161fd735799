"""The embedded data set: procedurally drawn scenes with exact labels.

Every image shows one to three objects on a mosaic of random tiles. It is a pure
function of (seed, split, index): nothing is downloaded, nothing is stored, and
the stream has no end. It mirrors the Clevr/Count and Clevr/Dist probes of the
paper (Assran et al., CVPR 2023) on a scale that fits two CPU cores.

What makes it a test of representations and not of pixels:

* Labels are drawn first and uniformly; sizes, places and background follow.
* Every shape covers the same area at the same size, and the mosaic is as light
  and as colourful as objects, so no weighted sum of pixels tells how many
  objects there are or what they are.
* Objects are whole and never touch, so every label can be read off the image.
* The objects of a scene are of one kind, and nothing predicts a tile: I-JEPA
  learns what can be predicted from the context, which here are the objects.
* All lengths are shares of the image side, so an index shows the same scene at
  every resolution.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ijepa_jax import errors
from ijepa_jax.data import dense, scene_drawing

# Part of the fingerprint: raise it whenever an image or a label changes.
_VERSION = 1
SPLITS = ('train', 'test')
MIN_SIDE = 16  # below it a shape cannot be told
_LENGTH = 2**31 - 1
_EPOCH_LENGTH = 10_000
_MASK64 = 2**64 - 1

_MAX_OBJECTS = 3
_GRID = 3  # `position` is a cell of a _GRID x _GRID grid
_TILES = 8  # per side of the background

# Clevr's colours, with white for grey, which tiles would hide.
_PALETTE = {
  'white': (0.95, 0.95, 0.95),
  'red': (0.85, 0.12, 0.12),
  'blue': (0.15, 0.25, 0.88),
  'green': (0.15, 0.65, 0.20),
  'brown': (0.50, 0.30, 0.14),
  'purple': (0.58, 0.18, 0.78),
  'cyan': (0.15, 0.82, 0.88),
  'yellow': (0.95, 0.88, 0.20),
}
CLASS_NAMES = {
  'count': tuple(str(n + 1) for n in range(_MAX_OBJECTS)),
  'shape': tuple(scene_drawing.CIRCUMRADIUS),
  'color': tuple(_PALETTE),
  'position': tuple(
    f'row {cell // _GRID} column {cell % _GRID}' for cell in range(_GRID**2)
  ),
}

# Of `mask` and of `boxes`.
_MASK_CLASSES = ('background', *CLASS_NAMES['shape'])
_BOX_CLASSES = CLASS_NAMES['shape']

_Draw = Callable[[], float]  # the next uniform number of [0, 1)


@dataclasses.dataclass(frozen=True)
class Scene:
  """Everything there is to know about an image.

  Attributes:
    image: (S, S, 3) uint8, what `__getitem__` returns.
    labels: Label name to class index, as `__getitem__` returns them.
    objects: The n objects, the largest first.
    boxes: (n, 4) float32, x0, y0, x1, y1 around each mask, in pixels; x1 and
      y1 are exclusive.
    masks: (n, S, S) bool, the pixels whose centre lies in the object. They are
      disjoint.
  """

  image: np.ndarray
  labels: dict[str, int]
  objects: tuple[scene_drawing.SceneObject, ...]
  boxes: np.ndarray
  masks: np.ndarray


class ScenesSource:
  """An endless, picklable source of scenes (the Source interface).

  Labels are class indices; `CLASS_NAMES` names them. `count` is the number of
  objects minus 1; `shape`, `color` and `position` describe the largest object,
  which covers at least 1.7 times the area of any other.

  Args:
    split: 'train' or 'test', two disjoint random streams.
    image_size: Side S of the images in pixels, at least 16.
    seed: Any integer; another seed is another data set.

  Raises:
    UserError: The split is unknown, or the images too small to show a shape.
  """

  name = 'scenes'
  mask_classes = _MASK_CLASSES
  box_classes = _BOX_CLASSES
  epoch_length = _EPOCH_LENGTH

  def __init__(self, split: str, image_size: int, seed: int = 0):
    if split not in SPLITS:
      raise errors.UserError(
        f"data.split={split!r}: scenes has the splits 'train' and 'test'"
      )
    if image_size < MIN_SIDE:
      raise errors.UserError(
        f'model.image_size={image_size}: scenes needs at least {MIN_SIDE} '
        'pixels'
      )
    self.split = split
    self.image_size = image_size
    self.seed = seed
    self.labels = {name: len(names) for name, names in CLASS_NAMES.items()}

  @property
  def fingerprint(self) -> str:
    return f'scenes-{_VERSION}-{self.seed}-{self.split}-{self.image_size}'

  def __len__(self) -> int:
    return _LENGTH

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Returns {'image': (S, S, 3) uint8, 'labels': {name: class index}}."""
    objects, background = self._layout(index)
    image = scene_drawing.render(objects, background, self.image_size)
    return {'image': image, 'labels': _labels(objects)}

  def record_id(self, index: int) -> str:
    return f'scenes/{self.split}/{index}'

  def scene(self, index: int) -> Scene:
    """Returns the same image with objects, boxes and masks."""
    objects, background = self._layout(index)
    size = self.image_size
    masks = [scene_drawing.object_mask(item, size) for item in objects]
    return Scene(
      image=scene_drawing.render(objects, background, size),
      labels=_labels(objects),
      objects=objects,
      boxes=np.array([_box(mask) for mask in masks], np.float32),
      masks=np.stack(masks),
    )

  def mask(self, index: int) -> np.ndarray:
    """Returns (S, S) uint8: 0 is background, 1 and up are the shapes."""
    scene = self.scene(index)
    kinds = [self.mask_classes.index(item.shape) for item in scene.objects]
    classes = np.array(kinds, np.uint8)[:, None, None]
    return (scene.masks * classes).max(0)  # the masks are disjoint

  def boxes(self, index: int) -> dense.Boxes:
    """The boxes around the objects; their class is the shape."""
    scene = self.scene(index)
    kinds = [self.box_classes.index(item.shape) for item in scene.objects]
    return dense.Boxes(
      scene.boxes / np.float32(self.image_size),
      np.array(kinds, np.int32),
      np.zeros(len(kinds), bool),
    )

  def size(self, index: int) -> tuple[int, int]:
    return self.image_size, self.image_size

  def _layout(
    self, index: int
  ) -> tuple[tuple[scene_drawing.SceneObject, ...], scene_drawing.Background]:
    if not 0 <= index < _LENGTH:
      raise IndexError(f'scenes: index {index} is not in [0, {_LENGTH})')
    # A Philox key names a stream: no two (seed, split, index) share one.
    stream = SPLITS.index(self.split) << 32 | int(index)
    key = stream << 64 | self.seed & _MASK64
    rng = np.random.Generator(np.random.Philox(key=key))
    draw = _uniforms(rng).__next__
    objects = _draw_objects(draw)
    return objects, _draw_background(draw)


def _uniforms(rng: np.random.Generator) -> Iterator[float]:
  # One at a time they would take a seventh of the time of an image.
  while True:
    yield from rng.random(64).tolist()


def _labels(objects: tuple[scene_drawing.SceneObject, ...]) -> dict[str, int]:
  x, y = objects[0].center
  return {
    'count': len(objects) - 1,
    'shape': CLASS_NAMES['shape'].index(objects[0].shape),
    'color': CLASS_NAMES['color'].index(objects[0].color),
    'position': _GRID * int(y * _GRID) + int(x * _GRID),
  }


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
  columns = np.flatnonzero(mask.any(0))
  rows = np.flatnonzero(mask.any(1))
  return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


# What is in a scene: from here on nothing knows the image size.


def _draw_objects(
  draw: _Draw,
) -> tuple[scene_drawing.SceneObject, ...]:
  """Draws 1 to _MAX_OBJECTS objects that fit and do not touch."""
  count = 1 + int(_MAX_OBJECTS * draw())
  cell = int(_GRID**2 * draw())
  # One kind per scene: what is hidden can be known from what is seen.
  kind = _draw_kind(draw)
  # Only sizes and places are drawn again: the labels stay exactly uniform.
  while (places := _draw_places(draw, kind[0], count, cell)) is None:
    pass
  return tuple(
    _draw_object(draw, kind, center, size) for center, size in places
  )


def _draw_kind(draw: _Draw) -> tuple[str, str, str]:
  """Draws shape, colour and texture."""
  return (
    _choose(draw, CLASS_NAMES['shape']),
    _choose(draw, CLASS_NAMES['color']),
    _choose(draw, scene_drawing.TEXTURES),
  )


def _draw_places(
  draw: _Draw, shape: str, count: int, cell: int
) -> list[tuple[tuple[float, float], float]] | None:
  """Returns (centre, size) of each object, or None if they do not fit."""
  border, gap = 0.01, 0.02
  row, column = divmod(cell, _GRID)
  size = _between(draw, 0.29, 0.36)
  radius = size * scene_drawing.CIRCUMRADIUS[shape]
  x = _between_borders(draw, column, radius + border)
  y = _between_borders(draw, row, radius + border)
  places = [((x, y), size)]
  taken = [(x, y, radius + gap)]
  for _ in range(count - 1):
    smaller = size * _between(draw, 0.6, 0.75)
    radius = smaller * scene_drawing.CIRCUMRADIUS[shape]
    low, high = radius + border, 1 - radius - border
    for _ in range(20):
      x, y = _between(draw, low, high), _between(draw, low, high)
      if all(math.hypot(x - a, y - b) > radius + r for a, b, r in taken):
        break
    else:
      return None
    places.append(((x, y), smaller))
    taken.append((x, y, radius + gap))
  return places


def _between_borders(draw: _Draw, cell: int, margin: float) -> float:
  """Draws from a row or column of the grid, `margin` inside the image."""
  low = max(cell / _GRID, margin)
  return _between(draw, low, min((cell + 1) / _GRID, 1 - margin))


def _draw_object(
  draw: _Draw,
  kind: tuple[str, str, str],
  center: tuple[float, float],
  size: float,
) -> scene_drawing.SceneObject:
  shape, color, texture = kind
  brightness = _between(draw, 0.9, 1.1)
  direction = _between(draw, 0, 2 * math.pi)
  shading = _between(draw, 0, 0.3)
  return scene_drawing.SceneObject(
    shape=shape,
    color=color,
    center=center,
    size=size,
    # Upright up to a tilt: a shape stays a matter of local edges.
    angle=_between(draw, -0.3, 0.3),
    rgb=tuple(
      min(max(brightness * channel + _between(draw, -0.05, 0.05), 0), 1)
      for channel in _PALETTE[color]
    ),
    texture=texture,
    frequency=_between(draw, 1.5, 2.5),
    light=(shading * math.cos(direction), shading * math.sin(direction)),
  )


def _draw_background(draw: _Draw) -> scene_drawing.Background:
  tiles = [draw() for _ in range(3 * _TILES**2)]
  return scene_drawing.Background(
    np.array(tiles, np.float32).reshape(3, _TILES, _TILES)
  )


def _between(draw: _Draw, low: float, high: float) -> float:
  return low + (high - low) * draw()


def _choose(draw: _Draw, names: tuple[str, ...]) -> str:
  return names[int(len(names) * draw())]
