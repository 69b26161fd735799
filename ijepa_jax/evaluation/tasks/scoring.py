"""Accuracies with intervals and chance."""

from typing import Any

import numpy as np

from ijepa_jax.evaluation import intervals, probes
from ijepa_jax.evaluation.tasks.context import Context
from ijepa_jax.evaluation.tasks.result import Score


def top1(
  label: str,
  predicted: np.ndarray,
  context: Context,
  details: dict[str, Any],
) -> Score:
  """The accuracy of predictions on test.

  Args:
    label: its name.
    predicted: `(m,)` classes.
    context: has the labels.
    details: kept with the score.
  """
  train, test = (context.labels(split)[label] for split in ('train', 'test'))
  return top1_of_classes(label, predicted, train, test, details)


def top1_of_classes(
  label: str,
  predicted: np.ndarray,
  train: np.ndarray,
  test: np.ndarray,
  details: dict[str, Any],
) -> Score:
  """The same for classes that are not the source's own labels.

  Args:
    label: their name.
    predicted: `(m,)` classes.
    train: `(n,)` true classes, for chance.
    test: `(m,)` true classes.
    details: kept with the score.
  """
  correct = int(np.sum(predicted == test))
  low, high = intervals.wilson(correct, len(test))
  return Score(
    label=label,
    metric='top1',
    value=correct / len(test),
    low=low,
    high=high,
    chance=probes.chance(train, test),
    details=details,
  )
