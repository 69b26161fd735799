"""Objects as points: a heat map of centres for each class, and a box for each.

After CenterNet (Zhou et al. 2019, arXiv 1904.07850), at the resolution of the
patches. The outputs of a patch are C logits of a centre in it, then where in it
the centre lies (x, y in 0..1) and the logarithms of the box's width and height
as shares of the image.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ijepa_jax.data import dense
from ijepa_jax.evaluation.dense import average_precision

# Numbers per patch beside the classes' logits.
BOX = 4
# Surer than this is a detection: COCO's metric hardly sees those below.
_LEAST_SCORE = 0.01
# Logit of a centre before training: so that the many patches without one do
# not swamp the first steps (Lin et al. 2017, arXiv 1708.02002, section 4.1).
_PRIOR = float(np.log(0.01 / 0.99))
# Standard deviation of the Gaussian around a centre over the box's side (Liu
# et al. 2019, arXiv 1909.00700, section 3.2).
_SPREAD = 0.54 / 6
# Boxes thinner than this share of the image are trained as if they had it.
_THINNEST = 1e-3


class Targets(NamedTuple):
  """What a head should say of b images of g x g patches.

  Attributes:
    heat: (b, g, g, C) float32, 1 at the patch of a centre, less around it.
    box: (b, g, g, 4) float32, as the outputs; 0 where there is no centre.
    known: (b, g, g) float32, 1 where there is a centre.
  """

  heat: np.ndarray
  box: np.ndarray
  known: np.ndarray


def targets(boxes: list[dense.Boxes], grid: int, classes: int) -> Targets:
  """Targets of images; boxes around crowds are left out.

  Where two centres share a patch, the smaller box is the one to be found.
  """
  shape = len(boxes), grid, grid
  heat = np.zeros((*shape, classes), np.float32)
  box = np.zeros((*shape, BOX), np.float32)
  known = np.zeros(shape, np.float32)
  cells = np.arange(grid)
  for image, one in enumerate(boxes):
    corners = one.corners[~one.crowd]
    sides = corners[:, 2:] - corners[:, :2]
    centres = (corners[:, 2:] + corners[:, :2]) / 2 * grid
    numbers = one.classes[~one.crowd]
    for number in np.argsort(-sides.prod(1), kind='stable'):
      side, centre = np.maximum(sides[number], _THINNEST), centres[number]
      x, y = np.minimum(centre.astype(int), grid - 1)
      around = [
        np.exp(-(((cells - at) / (_SPREAD * length * grid)) ** 2) / 2)
        for at, length in zip((x, y), side)
      ]
      layer = heat[image, :, :, numbers[number]]
      np.maximum(layer, around[1][:, None] * around[0], out=layer)
      box[image, y, x] = *(centre - (x, y)), *np.log(side)
      known[image, y, x] = 1
  return Targets(heat, box, known)


def loss(outputs: jax.Array, wanted: Targets) -> jax.Array:
  """CenterNet's: a focal loss of the centres, and L1 of the boxes there.

  Args:
    outputs: `(B, g, g, C + 4)`.
    wanted: of the same images.

  Returns:
    The sum over patches, per centre.
  """
  logits = outputs[..., :-BOX] + _PRIOR
  log_yes, log_no = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
  yes = jnp.exp(log_yes)
  found = (1 - yes) ** 2 * log_yes
  other = (1 - wanted.heat) ** 4 * yes**2 * log_no
  focal = -jnp.where(wanted.heat == 1, found, other).sum()
  off = jnp.abs(outputs[..., -BOX:] - wanted.box).sum(-1)
  return (focal + (wanted.known * off).sum()) / jnp.maximum(
    wanted.known.sum(), 1
  )


def decode(outputs: np.ndarray) -> average_precision.Detections:
  """Detections of one image: patches surer than their neighbours.

  Args:
    outputs: (g, g, C + 4).
  """
  logits, box = outputs[..., :-BOX] + _PRIOR, outputs[..., -BOX:]
  padded = np.pad(logits, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
  windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (0, 1))
  scores = 1 / (1 + np.exp(-np.clip(logits, -50, 50)))
  peak = (logits >= windows.max((-1, -2))) & (scores > _LEAST_SCORE)
  y, x, classes = np.nonzero(peak)
  order = np.argsort(-scores[y, x, classes], kind='stable')
  order = order[: average_precision.MAX_DETECTIONS]
  y, x, classes = y[order], x[order], classes[order]
  grid = len(outputs)
  centre = (np.stack([x, y], 1) + box[y, x, :2]) / grid
  half = np.exp(np.minimum(box[y, x, 2:], 0)) / 2  # no larger than the image
  corners = np.concatenate([centre - half, centre + half], 1)
  return average_precision.Detections(
    np.clip(corners, 0, 1), classes, scores[y, x, classes]
  )
