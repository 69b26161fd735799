"""Published sizes with fewer blocks; random weights and images."""

import numpy as np

from ijepa_jax.interop.weights import Architecture, Parameters
from ijepa_jax.models import sizes


def _shallow(name: str, depth: int, patch: int, grid: int) -> Architecture:
  """A published size with fewer blocks and patches."""
  full = sizes.SIZES[name]
  size = sizes.Size(full.width, depth, full.heads, full.mlp_ratio)
  return Architecture(size, patch, grid * patch)


CLASSES = {
  'huge, 14': _shallow('vit_huge', 1, 14, 2),
  'huge, 16': _shallow('vit_huge', 1, 16, 2),
  'giant, 16': _shallow('vit_giant', 1, 16, 2),
  'large, 16': _shallow('vit_large', 1, 16, 2),
  'base, 16': _shallow('vit_base', 2, 16, 2),
  'small, 16': _shallow('vit_small', 2, 16, 3),
  'tiny, 16': _shallow('vit_tiny', 2, 16, 3),
}


def random(shapes: dict[str, tuple[int, ...]], seed: int) -> Parameters:
  """Random numbers of these shapes."""
  rng = np.random.default_rng(seed)
  drawn = {
    path: rng.normal(path.endswith('scale'), 0.03, shape).astype(np.float32)
    for path, shape in shapes.items()
  }
  return Parameters(shapes, drawn.__getitem__)


def images(count: int, height: int, width: int) -> np.ndarray:
  """Normalised noise `(B, H, W, 3)`."""
  rng = np.random.default_rng(0)
  return rng.normal(size=(count, height, width, 3)).astype(np.float32)
