"""Real patches, found by their features."""

from collections.abc import Mapping, Sequence

import numpy as np

from ijepa_jax.visualize import patches
from ijepa_jax.visualize.neighbours import nearest
from ijepa_jax.visualize.prediction import Hole


class Bank:
  """The patches of some images.

  Attributes:
    features: `(m, D)`.
    patch_size: side of a patch in pixels.
  """

  def __init__(self, images: np.ndarray, features: np.ndarray, side: int):
    """Makes a bank.

    Args:
      images: `(n, S, S, 3)` uint8.
      features: `(n, N, D)` of their patches.
      side: of a patch in pixels.
    """
    self.features = features.reshape(-1, features.shape[-1])
    self.patch_size = side
    self._pixels = patches.cut(images, side).reshape(-1, side, side, 3)
    self._per_image = features.shape[1]

  def fill(
    self, canvas: np.ndarray, places: np.ndarray, features: np.ndarray
  ) -> np.ndarray:
    """Puts the patches with the nearest features into an image.

    Args:
      canvas: `(S, S, 3)` uint8, not changed.
      places: `(k,)` patch numbers.
      features: `(k, D)` wanted there.
    """
    found = nearest(features, self.features)[:, 0]
    return patches.paste(canvas, self._pixels[found], places)

  def agreement(
    self,
    found_for: Sequence[Hole],
    wanted: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
  ) -> dict[str, float]:
    """How often the nearest patch is of an image with the same label.

    Args:
      found_for: features of some patches of each of B images.
      wanted: label name to the classes `(B,)` of these images, -1 for none.
      labels: label name to the classes `(n,)` of the bank's.

    Returns:
      Shares by label name, 0..1; NaN where no image has the label.
    """
    counts = [len(hole.patches) for hole in found_for]
    features = np.concatenate([hole.features for hole in found_for])
    images = nearest(features, self.features)[:, 0] // self._per_image
    shares = {}
    for name, classes in labels.items():
      asked = np.repeat(wanted[name], counts)
      same = (classes[images] == asked)[asked >= 0]
      shares[name] = float(same.mean()) if len(same) else float('nan')
    return shares


def chance(wanted: np.ndarray, labels: np.ndarray) -> float:
  """The same share for patches found blindly.

  Args:
    wanted: `(B,)` classes, -1 for none.
    labels: `(n,)` classes of the bank's images.
  """
  asked = wanted[wanted >= 0]
  if not len(asked):
    return float('nan')
  return float((asked[:, None] == labels).mean())
