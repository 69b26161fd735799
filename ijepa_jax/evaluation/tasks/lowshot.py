"""Few labels: a share of train, or some images of each class, several times.

Each subset is measured by logistic regression on frozen features and, as the
paper does with 1 % of ImageNet, by fine-tuning the encoder. A seed draws an
order of the images of every class; a subset is its beginning, so that those of
a seed are nested, and of each class as many are taken as its share in train.
"""

from collections.abc import Callable, Sequence

import numpy as np

from ijepa_jax.evaluation import intervals, probes, subsets
from ijepa_jax.evaluation.finetuning import planning
from ijepa_jax.evaluation.tasks import finetune, logistic
from ijepa_jax.evaluation.tasks.context import Context
from ijepa_jax.evaluation.tasks.result import Score

# scikit-learn's default: a few images cannot choose another.
_C = 1.0

# (label, rows of train, seed) -> predicted classes of test.
_Predict = Callable[[str, np.ndarray, int], np.ndarray]


def run(context: Context) -> list[Score]:
  """One score for each label, method and size of subset.

  Raises:
    UserError: a class has too few images.
  """
  amounts = context.options['subsets']
  labels = context.labels('train')
  for y in labels.values():
    for amount in amounts:
      subsets.draw(y, amount, context.seed)  # an error now, not after an hour
  scores = []
  for method in context.options['methods']:
    predict = {'logistic': _logistic, 'finetune': _finetune}[method](context)
    for label, y in labels.items():
      for amount in amounts:
        context.log(f'{context.kind}: {method} on {label}, {amount}')
        scores.append(_measure(context, method, predict, label, y, amount))
  return scores


def _measure(
  context: Context,
  method: str,
  predict: _Predict,
  label: str,
  y: np.ndarray,
  amount: str,
) -> Score:
  """Mean over seeds, with its interval."""
  truth = context.labels('test')[label]
  seeds = [context.seed + k for k in range(context.options['seeds'])]
  shares, sizes, chances = [], [], []
  for seed in seeds:
    rows = subsets.draw(y, amount, seed)
    shares.append(probes.accuracy(predict(label, rows, seed), truth))
    chances.append(probes.chance(y[rows], truth))
    sizes.append(len(rows))
  low, high, interval = interval_of(shares, len(truth))
  return Score(
    label=f'{label}/{amount}/{method}',
    metric='top1',
    value=float(np.mean(shares)),
    low=low,
    high=high,
    chance=float(np.mean(chances)),
    details={
      'images': sizes,
      'seeds': seeds,
      'top1 by seed': shares,
      'interval': interval,
      'method': _about(context, method, sizes[0]),
    },
  )


def interval_of(
  shares: Sequence[float], images: int
) -> tuple[float, float, str]:
  """Low and high end, and what the interval is of.

  Args:
    shares: of right answers, one for each subset.
    images: of the test.
  """
  if len(shares) == 1:
    low, high = intervals.wilson(round(shares[0] * images), images)
    return low, high, 'of the test images (Wilson), for this one subset'
  low, high = intervals.of_mean(shares)
  about = 'of the mean over seeds (Student), on the same test images'
  return max(0.0, low), min(1.0, high), about


def _logistic(context: Context) -> _Predict:
  train, test = (context.pooled(split)[:, -1] for split in ('train', 'test'))

  def predict(label: str, rows: np.ndarray, seed: int) -> np.ndarray:
    y = context.labels('train')[label][rows]
    guess, _ = logistic.fit_predict(
      train[rows], {label: y}, test, seed, cs=(_C,)
    )
    return guess[label]

  return predict


def _finetune(context: Context) -> _Predict:
  recipe = finetune.chosen_recipe(context)
  train, test = (context.images.split(name) for name in ('train', 'test'))
  tuners = {
    label: finetune.make_tuner(context, recipe, train.source.labels[label])
    for label in context.images.labels
  }

  def predict(label: str, rows: np.ndarray, seed: int) -> np.ndarray:
    params = tuners[label].fit(
      finetune.start(context),
      train.source,
      context.records('train')[rows],
      label,
      seed,
      context.options['workers'],
    )
    return tuners[label].predict(
      params, test.source, context.records('test'), context.crop
    )

  return predict


def _about(context: Context, method: str, images: int) -> dict:
  """What was done with so many images, of which all seeds draw as many."""
  if method == 'logistic':
    return {
      'features': 'last layer, average-pooled, standardised',
      'C': _C,
    }
  recipe = finetune.chosen_recipe(context)
  plan = planning.plan(recipe, images, context.mesh.devices.size)
  return {
    'model': finetune.model_of(context),
    **planning.details(recipe, plan),
  }
