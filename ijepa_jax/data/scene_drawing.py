"""Draws a described scene at any resolution. Nothing here is random.

Lengths are shares of the image side, x points right and y points down. Edges
are antialiased by their distance, so a small image of a scene looks like a
large one made small.
"""

import functools
import math
from typing import NamedTuple

import numpy as np

_RING_INNER = 0.5  # inner over outer radius
_CROSS_ARM = 0.36  # half the width of an arm over its length from the centre
# Radius of the circumscribed circle of a shape that covers an area of 1.
CIRCUMRADIUS = {
  'circle': math.sqrt(1 / math.pi),
  'square': math.sqrt(1 / 2),
  'triangle': math.sqrt(4 / math.sqrt(27)),
  'cross': math.sqrt((1 + _CROSS_ARM**2) / (4 * _CROSS_ARM * (2 - _CROSS_ARM))),
  'ring': math.sqrt(1 / (math.pi * (1 - _RING_INNER**2))),
}
TEXTURES = ('plain', 'stripes', 'spots')


class SceneObject(NamedTuple):
  """One object. Lengths are shares of the image side; y points down."""

  shape: str
  color: str
  center: tuple[float, float]  # (x, y)
  size: float  # square root of the covered area
  angle: float  # radians
  rgb: tuple[float, ...]  # 3 numbers in [0, 1]
  texture: str  # of TEXTURES
  frequency: float  # periods of the texture over `size`
  light: tuple[float, float]  # change of brightness over `radius`, along u, v

  @property
  def radius(self) -> float:
    """Radius of the circumscribed circle."""
    return self.size * CIRCUMRADIUS[self.shape]


class Background(NamedTuple):
  """What lies behind the objects: square tiles."""

  tiles: np.ndarray  # (3, k, k) float32, colours in [0, 1], row by row


def render(
  objects: tuple[SceneObject, ...], background: Background, size: int
) -> np.ndarray:
  """Draws a scene.

  Args:
    objects: Painted in this order.
    background: What is painted before them.
    size: Side S of the image in pixels.

  Returns:
    (S, S, 3) uint8.
  """
  axis = _axis(size)
  # Channels first: numpy is slow where the last axis is short.
  tile = (axis * background.tiles.shape[1]).astype(int)
  canvas = background.tiles[:, tile[:, None], tile]  # (3, S, S)
  for item in objects:
    _paint(canvas, item, axis)
  canvas *= 255
  canvas += 0.5  # rounds to the nearest when truncated
  pixels = _clip(canvas, 255).astype(np.uint8)
  return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def object_mask(item: SceneObject, size: int) -> np.ndarray:
  """Returns (S, S) bool: the pixels whose centre lies in the object."""
  axis = _axis(size)
  return _outside(item, *_local(item, axis, axis)) < 0


def _paint(canvas: np.ndarray, item: SceneObject, axis: np.ndarray) -> None:
  """Blends an object into the (3, S, S) canvas, in place."""
  size = axis.size
  x, y = item.center
  radius = item.radius
  reach = radius * size + 1
  columns = slice(max(0, int(x * size - reach)), int(x * size + reach) + 1)
  rows = slice(max(0, int(y * size - reach)), int(y * size + reach) + 1)
  u, v = _local(item, axis[columns], axis[rows])
  # Coverage by the distance to the edge in pixels: an edge one pixel wide.
  alpha = _clip(0.5 - _outside(item, u, v) * size)
  tone = 1 + (item.light[0] / radius) * u + (item.light[1] / radius) * v
  if item.texture != 'plain':
    turn = 2 * math.pi * item.frequency / item.size
    pattern = np.sin(turn * u)
    if item.texture == 'spots':
      pattern *= np.sin(turn * v)
    tone += 0.3 * (_clip(0.5 + 1.5 * pattern) - 0.5)
  window = canvas[:, rows, columns]
  rgb = np.array(item.rgb, np.float32)[:, None, None]
  window += alpha * (rgb * tone - window)


def _local(
  item: SceneObject, xs: np.ndarray, ys: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Turns image coordinates (w,), (h,) into the object's: two (h, w)."""
  cos, sin = math.cos(item.angle), math.sin(item.angle)
  x, y = xs - item.center[0], (ys - item.center[1])[:, None]
  return cos * x + sin * y, cos * y - sin * x


def _outside(item: SceneObject, u: np.ndarray, v: np.ndarray) -> np.ndarray:
  """Signed distance to the lines of the outline: negative inside."""
  radius = item.radius
  if item.shape == 'circle':
    return np.sqrt(u * u + v * v) - radius
  if item.shape == 'ring':
    half = radius * (1 - _RING_INNER) / 2
    return np.abs(np.sqrt(u * u + v * v) - (radius - half)) - half
  u = np.abs(u)
  if item.shape == 'triangle':
    return np.maximum(v, math.sqrt(0.75) * u - 0.5 * v) - radius / 2
  v = np.abs(v)
  if item.shape == 'square':
    return np.maximum(u, v) - radius * math.sqrt(0.5)
  arm = radius / math.sqrt(1 + _CROSS_ARM**2)
  return np.maximum(np.maximum(u, v) - arm, np.minimum(u, v) - _CROSS_ARM * arm)


def _clip(values: np.ndarray, high: float = 1.0) -> np.ndarray:
  """Clips to [0, high], in place; np.clip takes 1.5 times as long."""
  return np.minimum(np.maximum(values, 0, out=values), high, out=values)


@functools.lru_cache
def _axis(size: int) -> np.ndarray:
  """Returns (S,): where the pixel centres lie between 0 and 1."""
  return (np.arange(size, dtype=np.float32) + 0.5) / size
