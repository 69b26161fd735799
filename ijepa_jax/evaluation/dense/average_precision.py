"""COCO's average precision, computed by pycocotools, with intervals."""

import contextlib
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from ijepa_jax import errors
from ijepa_jax.data import dense

# COCO's limit of detections per image.
MAX_DETECTIONS = 100


@dataclasses.dataclass(frozen=True)
class Detections:
  """What was found in an image.

  Attributes:
    corners: (d, 4) x0, y0, x1, y1 as shares of width and height.
    classes: (d,) integers.
    scores: (d,) the higher the surer.
  """

  corners: np.ndarray
  classes: np.ndarray
  scores: np.ndarray


def require() -> None:
  """Raises a UserError where pycocotools is missing."""
  try:
    import pycocotools.cocoeval  # noqa: F401
  except ImportError as error:
    raise errors.UserError(
      "task detect needs pycocotools: pip install -e '.[detect]'"
    ) from error


class Evaluation:
  """Detections compared with the truth, once; then AP of any of the images."""

  def __init__(
    self,
    truth: Sequence[dense.Boxes],
    found: Sequence[Detections],
    sizes: Sequence[tuple[int, int]],
    classes: int,
  ):
    """Matches detections and boxes.

    Args:
      truth: boxes of each image.
      found: detections of each image.
      sizes: (width, height) of each image in pixels.
      classes: how many there are.

    Raises:
      UserError: pycocotools is missing.
    """
    require()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    self._classes, self._images = classes, len(truth)
    with contextlib.redirect_stdout(io.StringIO()):
      held = COCO()
      held.dataset = {
        'images': [{'id': image} for image in range(len(truth))],
        'categories': [{'id': number} for number in range(classes)],
        'annotations': _annotations(truth, sizes),
      }
      held.createIndex()
      made = COCO()
      made.dataset = dict(held.dataset, annotations=_results(found, sizes))
      made.createIndex()
      evaluation = COCOeval(held, made, 'bbox')
      evaluation.params.areaRng = [[0, 1e10]]
      evaluation.params.areaRngLbl = ['all']
      evaluation.params.maxDets = [MAX_DETECTIONS]
      evaluation.evaluate()
    self._evaluation = evaluation
    self._matches = evaluation.evalImgs

  def average_precision(
    self, rows: np.ndarray | None = None
  ) -> dict[str, float]:
    """AP, AP50 and AP75 as shares; 0 where no image has a box.

    Args:
      rows: numbers of as many images as there are, which may repeat (for the
        bootstrap); None: each once.
    """
    evaluation, n = self._evaluation, self._images
    evaluation.evalImgs = self._matches
    if rows is not None:
      # pycocotools keeps one entry per class and image, classes first.
      first = n * np.arange(self._classes)[:, None]
      places = (first + rows).ravel()
      evaluation.evalImgs = [self._matches[place] for place in places]
    with contextlib.redirect_stdout(io.StringIO()):
      evaluation.accumulate()
    precision = evaluation.eval['precision'][..., 0, 0]  # (T, R, C)
    thresholds = evaluation.params.iouThrs

    def mean(values: np.ndarray) -> float:
      known = values[values > -1]
      return float(known.mean()) if known.size else 0.0

    return {
      'AP': mean(precision),
      'AP50': mean(precision[np.isclose(thresholds, 0.5)]),
      'AP75': mean(precision[np.isclose(thresholds, 0.75)]),
    }


def _annotations(
  truth: Sequence[dense.Boxes], sizes: Sequence[tuple[int, int]]
) -> list[dict[str, Any]]:
  rows: list[dict[str, Any]] = []
  for image, (boxes, size) in enumerate(zip(truth, sizes)):
    for corners, number, crowd in zip(*boxes):
      # From 1: pycocotools takes a match with the annotation 0 for none.
      row = {'id': len(rows) + 1, 'iscrowd': int(crowd)}
      rows.append(row | _box(image, corners, int(number), size))
  return rows


def _results(
  found: Sequence[Detections], sizes: Sequence[tuple[int, int]]
) -> list[dict[str, Any]]:
  rows: list[dict[str, Any]] = []
  for image, (one, size) in enumerate(zip(found, sizes)):
    for corners, number, score in zip(one.corners, one.classes, one.scores):
      row = {'id': len(rows) + 1, 'score': float(score)}
      rows.append(row | _box(image, corners, int(number), size))
  return rows


def _box(
  image: int, corners: np.ndarray, number: int, size: tuple[int, int]
) -> dict[str, Any]:
  x0, y0, x1, y1 = (np.asarray(corners, np.float64) * np.tile(size, 2)).tolist()
  width, height = x1 - x0, y1 - y0
  return {
    'image_id': image,
    'category_id': number,
    'bbox': [x0, y0, width, height],
    'area': width * height,
  }
