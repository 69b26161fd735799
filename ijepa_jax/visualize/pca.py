"""Principal components of patch features, as colours."""

import dataclasses
import os

import numpy as np

from ijepa_jax.visualize import patches
from ijepa_jax.visualize.products import products
from ijepa_jax.visualize.sheet import Sheet, unit_range

TITLE = 'What patches have in common: PCA of their features'
EXPLANATION = (
  'The first three principal components of the patch features as red, green '
  'and blue: patches of one colour have like features, in all images.'
)


@dataclasses.dataclass(frozen=True)
class Components:
  """Directions in which features vary most.

  Attributes:
    mean: `(D,)` of all patches.
    axes: `(C, D)` of length 1, the largest variance first.
    shares: `(C,)` of the variance, 0..1.
  """

  mean: np.ndarray
  axes: np.ndarray
  shares: np.ndarray

  def project(self, features: np.ndarray) -> np.ndarray:
    """Coordinates `(..., C)` of features `(..., D)`."""
    return (features - self.mean) @ self.axes.T


def fit(rows: np.ndarray, count: int = 3) -> Components:
  """Fits components to features `(n, D)`; `count` is at most D.

  The sign of a component is free: its largest coordinate is made positive.
  """
  mean = rows.mean(0, dtype=np.float64)
  covariance = products(rows) / len(rows) - np.outer(mean, mean)
  variances, vectors = np.linalg.eigh(covariance)
  axes = vectors[:, ::-1][:, :count].T  # (C, D)
  largest = np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1)
  shares = variances[::-1][:count] / max(variances.sum(), 1e-300)
  return Components(mean, axes * np.sign(largest), shares)


def fit_patches(features: np.ndarray, count: int = 3) -> Components:
  """Fits components to the patches of all images together.

  Signs are chosen so that patches in the middle of images have larger
  coordinates than those at the border: photographers put objects there.

  Args:
    features: `(n, N, D)`, N patches of square images, row by row.
    count: components, at most D.
  """
  length, width = features.shape[1:]
  fitted = fit(features.reshape(-1, width), count)
  grid = round(length**0.5)
  middle = np.zeros((grid, grid), bool)
  middle[1:-1, 1:-1] = True
  middle = middle.ravel()
  if not middle.any():
    return fitted
  by_place = fitted.project(features.mean(0))  # (N, C)
  outwards = by_place[~middle].mean(0) > by_place[middle].mean(0)
  axes = np.where(outwards[:, None], -fitted.axes, fitted.axes)
  return dataclasses.replace(fitted, axes=axes)


def origins(features: np.ndarray) -> tuple[float, float]:
  """Shares of the variance of `(n, N, D)` between images, and between places.

  The first is of the images' mean features, the second of the mean features
  at each place; what is left is what a patch has of its own.
  """
  mean = features.mean((0, 1), dtype=np.float64)
  total = max(float(((features - mean) ** 2).mean((0, 1)).sum()), 1e-300)
  images = ((features.mean(1) - mean) ** 2).mean(0).sum()
  places = ((features.mean(0) - mean) ** 2).mean(0).sum()
  return float(images / total), float(places / total)


def draw_pca(
  path: str | os.PathLike,
  images: np.ndarray,
  features: np.ndarray,
  others: np.ndarray,
) -> None:
  """Draws images, three components as colours, and the foreground.

  Args:
    path: of the PNG, written atomically.
    images: `(n, S, S, 3)` uint8.
    features: `(n, N, D)` of their patches.
    others: `(m, N, D)` of more images that components are fitted to as well.
  """
  n, length, _ = features.shape
  grid = round(length**0.5)
  everything = np.concatenate([features, others])
  fitted = fit_patches(everything)
  colors = unit_range(fitted.project(everything))[:n]
  # What all patches of an image share would hide what differs inside of it.
  own = everything - everything.mean(1, keepdims=True)
  inside = fit_patches(own, 1).project(own)[..., 0]
  foreground = inside > 0
  # Fitted again to the foreground alone, so that colours tell its parts.
  parts = np.ones((*inside.shape, 3))
  rows = everything[foreground]
  if len(rows):  # none where all patches of each image are alike
    parts[foreground] = unit_range(fit(rows).project(rows))

  between, places = origins(everything)
  percent = ', '.join(f'{share:.0%}' for share in fitted.shares)
  sheet = Sheet(
    4,
    n,
    title=TITLE,
    text='Components are fitted to all patches of '
    f'{len(everything):,} images together, so a colour means the same in '
    f'every image. The three hold {percent} of the variance. Of all '
    f'variance {between:.0%} is between images (what all patches of an image '
    f'share), {places:.0%} between places in the image, the rest is of single '
    'patches. Foreground is where the first component of what is left without '
    "each image's mean is above 0: in good encoders often the object.",
    foot=0.65,
  )
  scale = float(np.percentile(np.abs(inside), 99))
  for i, image in enumerate(images):
    patches.show(sheet.tile(0, i), image)
    patches.show(sheet.tile(1, i), colors[i].reshape(grid, grid, 3))
    axis = sheet.tile(2, i)
    drawn = patches.show_values(axis, inside[i], 1, 'PuOr_r', (-scale, scale))
    patches.show(sheet.tile(3, i), parts[i].reshape(grid, grid, 3))
  sheet.label(0, 'image')
  sheet.label(1, 'three\ncomponents', 'as red, green,\nblue')
  sheet.label(2, 'inside the\nimage', 'first component\nwithout its mean')
  sheet.label(3, 'foreground', 'where that is above\n0; PCA of it alone')
  sheet.color_bar(drawn, 'inside the image, in units of the features')
  sheet.save(path)
