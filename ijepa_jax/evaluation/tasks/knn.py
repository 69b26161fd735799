"""k nearest neighbours by DINO's protocol."""

import jax
import numpy as np

from ijepa_jax.evaluation import neighbours
from ijepa_jax.evaluation.tasks import scoring
from ijepa_jax.evaluation.tasks.context import Context
from ijepa_jax.evaluation.tasks.result import Score
from ijepa_jax.metrics import counting

# Caron et al. 2021, `eval_knn.py`.
KS = (10, 20, 100, 200)
TEMPERATURE = 0.07


def run(context: Context) -> list[Score]:
  """Average-pooled features of the last layer; k is set, never chosen."""
  k = context.options['k']
  ks = sorted({*KS, k})
  labels = context.labels('test')
  train, test = context.pooled('train')[:, -1], context.pooled('test')[:, -1]
  with counting.Counter(
    f'{context.kind}, neighbours',
    len(train),
    'images',
    enabled=jax.process_index() == 0,
  ) as counter:
    predicted = neighbours.predict(
      train,
      context.labels('train'),
      test,
      ks,
      temperature=TEMPERATURE,
      advance=counter.add,
    )
  return [
    scoring.top1(
      label,
      by_k[k],
      context,
      {
        'features': 'last layer, average-pooled, L2-normalised',
        'k': k,
        'temperature': TEMPERATURE,
        'top1 by k': {
          str(other): float(np.mean(y == labels[label]))
          for other, y in by_k.items()
        },
      },
    )
    for label, by_k in predicted.items()
  ]
