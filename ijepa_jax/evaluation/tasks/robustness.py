"""A probe fitted on clean images, measured on corrupted ones."""

import functools

import numpy as np

from ijepa_jax.evaluation import corruptions, intervals, probes
from ijepa_jax.evaluation.tasks import ridge
from ijepa_jax.evaluation.tasks.context import Context
from ijepa_jax.evaluation.tasks.result import Score


def run(context: Context) -> list[Score]:
  """Mean accuracy of the ridge probe over corruptions and severities."""
  kinds = [
    (name, severity)
    for name in corruptions.NAMES
    for severity in corruptions.SEVERITIES
  ]
  predict, chosen = probes.fit_ridge(
    context.pooled('train')[:, -1], context.labels('train')
  )
  predicted = [predict(context.pooled('test')[:, -1])] + [
    predict(
      context.corrupted(corruptions.Corruption(name, severity, context.seed))
    )
    for name, severity in kinds
  ]
  scores = []
  for label, y in context.labels('test').items():
    # Of clean images, then of each kind: (1 + kinds, m).
    right = np.stack([of_set[label] == y for of_set in predicted])
    # Images are what is drawn, each with all its corrupted copies.
    mean = right[1:].mean(0)  # (m,)
    low, high = intervals.bootstrap(
      functools.partial(_mean, mean), len(y), seed=context.seed
    )['mean']
    shares = right.mean(1)
    table = {
      name: [float(share) for share in row]
      for name, row in zip(
        corruptions.NAMES,
        shares[1:].reshape(-1, len(corruptions.SEVERITIES)),
      )
    }
    scores.append(
      Score(
        label=label,
        metric='top1',
        value=float(mean.mean()),
        low=low,
        high=high,
        chance=probes.chance(context.labels('train')[label], y),
        details={
          'probe': 'ridge, fitted on clean images',
          **ridge.details(chosen[label]),
          'clean top1': float(shares[0]),
          'top1 by severity': table,
        },
      )
    )
  return scores


def _mean(values: np.ndarray, rows: np.ndarray) -> dict[str, float]:
  return {'mean': float(values[rows].mean())}
