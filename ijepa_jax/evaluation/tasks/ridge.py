"""Linear classifier in closed form, for quick looks.

The probe of training runs: ridge regression to one-hot targets on standardised
features, its penalty chosen on a fifth of train.
"""

from typing import Any

from ijepa_jax.evaluation import probes
from ijepa_jax.evaluation.tasks import scoring
from ijepa_jax.evaluation.tasks.context import Context
from ijepa_jax.evaluation.tasks.result import Score


def run(context: Context) -> list[Score]:
  """Average-pooled features of the last layer."""
  train, test = context.pooled('train')[:, -1], context.pooled('test')[:, -1]
  predict, chosen = probes.fit_ridge(train, context.labels('train'))
  return [
    scoring.top1(label, y, context, details(chosen[label]))
    for label, y in predict(test).items()
  ]


def details(chosen: probes.Chosen) -> dict[str, Any]:
  """For results.json."""
  return {
    'features': 'last layer, average-pooled, standardised',
    'penalties': list(probes.PENALTIES),
    'chosen': {'penalty': chosen.penalty},
    'chosen on': 'a fifth of train, then fitted again on all of it',
    'held-out top1': chosen.accuracy,
  }
