"""Position tables at other resolutions."""

import numpy as np


def interpolate(
  table: np.ndarray, grid: tuple[int, int], new_grid: tuple[int, int]
) -> np.ndarray:
  """Bicubic interpolation as Hugging Face does it.

  PyTorch's `interpolate(mode='bicubic', align_corners=False)`: a = -0.75,
  half-pixel centres, edges clamped, no antialias, which `jax.image.resize`
  has not. In float64; PyTorch's own float32 is within 1.3e-7.

  Args:
    table: `(h * w, D)`, row-major.
    grid: its rows and columns `(h, w)`.
    new_grid: those wanted.

  Returns:
    `(new_h * new_w, D)` of the type of `table`.
  """
  if grid == new_grid:
    return table
  cells = table.reshape(*grid, -1).astype(np.float64)
  rows, columns = (axis_weights(old, new) for old, new in zip(grid, new_grid))
  resized = np.einsum('ah,bw,hwd->abd', rows, columns, cells, optimize=True)
  return resized.reshape(-1, table.shape[1]).astype(table.dtype)


def square(table: np.ndarray, grid: int, new_grid: int) -> np.ndarray:
  """`interpolate` between square grids."""
  return interpolate(table, (grid, grid), (new_grid, new_grid))


def axis_weights(old: int, new: int) -> np.ndarray:
  """Interpolation along one axis as a matrix `(new, old)`."""
  centre = (np.arange(new) + 0.5) * old / new - 0.5
  first = np.floor(centre).astype(int)
  matrix = np.zeros((new, old))
  for offset in (-1, 0, 1, 2):
    distance = np.abs(centre - (first + offset))
    column = np.clip(first + offset, 0, old - 1)
    np.add.at(matrix, (np.arange(new), column), _cubic(distance))
  return matrix


def _cubic(x: np.ndarray, a: float = -0.75) -> np.ndarray:
  """Keys' cubic convolution kernel at distances `x` in [0, 2]."""
  near = (a + 2) * x**3 - (a + 3) * x**2 + 1
  far = a * (x**3 - 5 * x**2 + 8 * x - 4)
  return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
