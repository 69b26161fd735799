"""Object detection: a light head on frozen patch tokens, COCO's AP.

A convolution over 3 x 3 patches says where centres of objects are, of which
class, and how large (`dense.detection`). At the resolution of the patches it is
a baseline for comparing encoders, far from a detector of its own right.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ijepa_jax import errors
from ijepa_jax.data import dense
from ijepa_jax.evaluation import intervals
from ijepa_jax.evaluation.dense import (
  average_precision,
  detection,
  fitting,
  patches,
)
from ijepa_jax.evaluation.tasks import needs
from ijepa_jax.evaluation.tasks.context import SPLITS, Context, SplitName
from ijepa_jax.evaluation.tasks.result import Score

_METRICS = ('AP', 'AP50')
# Draws of the bootstrap: pycocotools takes a second for a hundred.
_SAMPLES = 200


def run(context: Context) -> list[Score]:
  """AP and AP50 on test.

  Raises:
    UserError: train and test have other classes, or train has no box.
  """
  train, test = (needs.boxed(context, split, 'detect') for split in SPLITS)
  if train.box_classes != test.box_classes:
    raise errors.UserError(
      f'task detect: {train.name} has the classes '
      f'{", ".join(train.box_classes)}, {test.name} '
      f'{", ".join(test.box_classes)}: expected the same'
    )
  train_tokens, test_tokens = patches.load(context)
  classes = len(train.box_classes)
  boxes, sizes = boxes_of(context, 'train')
  if not sum(len(one.classes) for one in boxes):
    raise errors.UserError(f'task detect: {train.name} has no box at all')

  def held_out(rows: np.ndarray, outputs: Iterator[np.ndarray]) -> float:
    found = [detection.decode(one) for one in outputs]
    evaluation = average_precision.Evaluation(
      [boxes[row] for row in rows], found, [sizes[row] for row in rows], classes
    )
    return evaluation.average_precision()['AP']

  (fitted,) = fitting.fit(
    context,
    ('conv',),
    train_tokens,
    outputs=classes + detection.BOX,
    loss=detection.loss,
    targets=lambda rows: detection.targets(
      [boxes[row] for row in rows], context.grid, classes
    ),
    score=held_out,
  )
  truth, test_sizes = boxes_of(context, 'test')
  found = [detection.decode(one) for one in fitted.outputs(test_tokens)]
  evaluation = average_precision.Evaluation(truth, found, test_sizes, classes)
  guesses = _random_boxes(boxes, len(truth), context.seed)
  chance = average_precision.Evaluation(truth, guesses, test_sizes, classes)
  return _scores(context, evaluation, chance, len(truth), fitted)


def _scores(
  context: Context,
  evaluation: average_precision.Evaluation,
  chance: average_precision.Evaluation,
  total: int,
  fitted: fitting.Fitted,
) -> list[Score]:
  values = evaluation.average_precision()
  by_chance = chance.average_precision()

  ends = intervals.bootstrap(
    evaluation.average_precision, total, seed=context.seed, samples=_SAMPLES
  )
  return [
    Score(
      label='box',
      metric=metric,
      value=values[metric],
      low=ends[metric][0],
      high=ends[metric][1],
      chance=by_chance[metric],
      details={
        **fitted.details,
        'AP75': values['AP75'],
        'chance is': 'the boxes of a random training image, scores at random',
      },
    )
    for metric in _METRICS
  ]


def boxes_of(
  context: Context, split: SplitName
) -> tuple[list[dense.Boxes], list[tuple[int, int]]]:
  """Boxes and sizes in pixels of a split's images; it has boxes."""
  source: Any = context.images.split(split).source
  records = [int(record) for record in context.records(split)]
  return (
    [source.boxes(record) for record in records],
    [source.size(record) for record in records],
  )


def _random_boxes(
  boxes: list[dense.Boxes], total: int, seed: int
) -> list[average_precision.Detections]:
  rng = np.random.default_rng(seed)
  chosen = [boxes[row] for row in rng.integers(0, len(boxes), total)]
  return [
    average_precision.Detections(
      one.corners, one.classes, rng.random(len(one.classes))
    )
    for one in chosen
  ]
