"""How many objects, and how near: Clevr's probes, on any images with boxes.

The benchmark makes classes of both (Zhai et al. 2019, arXiv 1910.04867): Count
is the number of objects, Dist the distance of the nearest one in six bins. So
does `top1` here, by logistic regression. R2 and MAE are of ridge regression in
closed form on the numbers themselves.

Flat images have no depth. What stands for the distance of the nearest object is
how large the largest one looks, the square root of its box's area as a share of
the image, in six bins that are equally frequent in train; and its place.
"""

import dataclasses
import functools

import numpy as np

from ijepa_jax import errors
from ijepa_jax.data import dense
from ijepa_jax.evaluation import intervals, probes
from ijepa_jax.evaluation import labels as label_codes
from ijepa_jax.evaluation.tasks import detect, logistic, scoring
from ijepa_jax.evaluation.tasks.context import SPLITS, Context
from ijepa_jax.evaluation.tasks.result import Score

_BINS = 6
# Images with a box that there must be, to fit on and to measure on.
_LEAST = 2


@dataclasses.dataclass(frozen=True)
class _Targets:
  """Numbers to predict for some rows of a split.

  Attributes:
    rows: (n,) which rows have them.
    values: label -> (n,) float64.
  """

  rows: np.ndarray
  values: dict[str, np.ndarray]


def run(context: Context) -> list[Score]:
  """The number of objects, or size and place of the largest.

  Raises:
    UserError: too few images have a box, or all as many.
  """
  of = context.options['of']
  return {'count': _count, 'distance': _distance}[of](context)


def _count(context: Context) -> list[Score]:
  targets = [_counts(boxes) for boxes in _boxes(context)]
  classes = [one.values['count'].astype(np.int64) for one in targets]
  if len(np.unique(classes[0])) < 2:
    raise errors.UserError(
      f'task count: all images of {context.images.train.source.name} have '
      f'{classes[0][0]} objects; expected different numbers'
    )
  return [
    _classified(context, 'count', targets, classes, {}),
    *_regressed(context, targets),
  ]


def _distance(context: Context) -> list[Score]:
  targets = [_largest(boxes) for boxes in _boxes(context)]
  for split, one in zip(SPLITS, targets):
    if len(one.rows) < _LEAST:
      raise errors.UserError(
        f'task distance: {context.images.split(split).source.name} has '
        f'{len(one.rows)} images with a box; expected {_LEAST} at least'
      )
  shares = np.arange(1, _BINS) / _BINS
  edges = np.quantile(targets[0].values['size'], shares)
  classes = [np.searchsorted(edges, one.values['size']) for one in targets]
  return [
    _classified(context, 'size', targets, classes, {'bins': edges.tolist()}),
    *_regressed(context, targets),
  ]


def _boxes(context: Context) -> list[list[dense.Boxes]]:
  """Boxes of train and of test."""
  for split in SPLITS:
    # First the features that are wanted: they say which records are readable.
    context.pooled(split, whole=True)
  return [detect.boxes_of(context, split)[0] for split in SPLITS]


def _counts(boxes: list[dense.Boxes]) -> _Targets:
  numbers = [float((~one.crowd).sum()) for one in boxes]
  return _Targets(np.arange(len(boxes)), {'count': np.array(numbers)})


def _largest(boxes: list[dense.Boxes]) -> _Targets:
  rows, found = [], []
  for row, one in enumerate(boxes):
    corners = one.corners[~one.crowd].astype(np.float64)
    if not len(corners):
      continue
    sizes = np.sqrt((corners[:, 2:] - corners[:, :2]).prod(1))
    x0, y0, x1, y1 = corners[sizes.argmax()]
    rows.append(row)
    found.append((sizes.max(), (x0 + x1) / 2, (y0 + y1) / 2))
  columns = np.array(found).reshape(-1, 3).T
  return _Targets(np.array(rows, int), dict(zip(('size', 'x', 'y'), columns)))


def _features(context: Context, targets: list[_Targets]) -> list[np.ndarray]:
  """Pooled last-layer features of train and test."""
  return [
    context.pooled('train', whole=True)[:, -1][targets[0].rows],
    context.pooled('test', whole=True)[:, -1][targets[1].rows],
  ]


def _classified(
  context: Context,
  label: str,
  targets: list[_Targets],
  classes: list[np.ndarray],
  details: dict,
) -> Score:
  train, test = _features(context, targets)
  predicted, chosen = logistic.fit_predict(
    train, {label: classes[0]}, test, context.seed
  )
  return scoring.top1_of_classes(
    label, predicted[label], classes[0], classes[1], chosen[label] | details
  )


def _regressed(context: Context, targets: list[_Targets]) -> list[Score]:
  """R2 and MAE of each number."""
  train, test = _features(context, targets)
  truth = targets[1].values
  predicted, penalties = _ridge(train, targets[0].values, test, context.seed)
  scores = []
  for label, y in truth.items():
    mean = targets[0].values[label].mean()
    values = _figures(y, predicted[label], np.arange(len(y)))
    ends = intervals.bootstrap(
      functools.partial(_figures, y, predicted[label]),
      len(y),
      seed=context.seed,
    )
    by_chance = _figures(y, np.full(len(y), mean), np.arange(len(y)))
    for metric, value in values.items():
      scores.append(
        Score(
          label=label,
          metric=metric,
          value=value,
          low=ends[metric][0],
          high=ends[metric][1],
          chance=by_chance[metric],
          details={
            'features': 'last layer, average-pooled, standardised',
            'chosen': {'penalty': penalties[label]},
            'chosen on': 'images held out of train, then fitted again on all '
            'of it',
            'chance is': "train's mean",
          },
        )
      )
  return scores


class _Columns:
  """Numbers as the targets of a ridge regression."""

  def __init__(self, values: np.ndarray):
    self._values, self.width = values, values.shape[1]

  def encode(self, rows: np.ndarray) -> np.ndarray:
    return self._values[rows]


def _ridge(
  train: np.ndarray,
  values: dict[str, np.ndarray],
  test: np.ndarray,
  seed: int,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
  """Predictions for test, and the penalty chosen, by label."""
  y = np.stack(list(values.values()), 1)  # (n, labels)
  fitted, held = label_codes.hold_out(len(train), seed)
  ridge = probes.Ridge(train, _Columns(y))
  ridge.add(fitted)
  losses = [
    np.square(ridge.fit(penalty)(train[held]) - y[held]).mean(0)
    for penalty in probes.PENALTIES
  ]
  penalties = [probes.PENALTIES[k] for k in np.argmin(losses, axis=0)]
  ridge.add(held)
  predicted = {
    name: ridge.fit(penalty)(test)[:, column]
    for column, (name, penalty) in enumerate(zip(values, penalties))
  }
  return predicted, dict(zip(values, penalties))


def _figures(
  truth: np.ndarray, guess: np.ndarray, rows: np.ndarray
) -> dict[str, float]:
  """R2 and MAE of some rows, which may repeat."""
  truth, guess = truth[rows], guess[rows]
  return {'R2': _r2(truth, guess), 'MAE': _mae(truth, guess)}


def _r2(truth: np.ndarray, guess: np.ndarray) -> float:
  """As scikit-learn's, also where there is nothing to explain: 1 or 0."""
  spread = np.square(truth - truth.mean()).sum()
  left = np.square(truth - guess).sum()
  return float(1 - left / spread) if spread else float(left == 0)


def _mae(truth: np.ndarray, guess: np.ndarray) -> float:
  return float(np.abs(truth - guess).mean())
