"""Logistic regression on average-pooled features, its C chosen on train."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ijepa_jax.evaluation import labels, logistic, moments
from ijepa_jax.evaluation.tasks import scoring
from ijepa_jax.evaluation.tasks.context import Context
from ijepa_jax.evaluation.tasks.result import Score
from ijepa_jax.metrics import counting

# Half decades; features are standardised. Of small encoders on few images the
# best were up to 100.
CS = (
  *(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
  *(1e-1, 3e-1, 1.0, 3.0, 10.0, 30.0, 100.0),
)


def run(context: Context) -> list[Score]:
  """Last layer; fitted again on all of train with the C that was chosen."""
  with counting.Counter(
    f'{context.kind}, logistic regression',
    len(CS) + 1,
    'fits',
    enabled=jax.process_index() == 0,
  ) as counter:
    predicted, details = fit_predict(
      context.pooled('train')[:, -1],
      context.labels('train'),
      context.pooled('test')[:, -1],
      context.seed,
      advance=counter.add,
    )
  return [
    scoring.top1(name, guess, context, details[name])
    for name, guess in predicted.items()
  ]


def fit_predict(
  train: np.ndarray,
  train_labels: Mapping[str, np.ndarray],
  test: np.ndarray,
  seed: int,
  cs: Sequence[float] = CS,
  advance: Callable[[int], None] = lambda count: None,
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
  """Fits every label and predicts it.

  Args:
    train: `(n, D)` features.
    train_labels: label name -> `(n,)` integers.
    test: `(m, D)` features.
    seed: of the images that C is chosen on.
    cs: inverse penalties to choose from, rising; with a single one nothing is
      held out.
    advance: told how many fits were made, of `cs` and one more.

  Returns:
    Label name -> `(m,)` predicted classes, and label name -> what was chosen.
  """
  codes = labels.encode(train_labels)
  mask = codes.mask()
  mean, scale = moments.of(train, np.arange(len(train)))
  x, x_test = (train - mean) * scale, (test - mean) * scale
  regression = logistic.Regression(x, codes.codes, mask)
  every = np.arange(len(codes.names))
  best = np.zeros(len(every), int)
  start = None
  chosen: dict[str, dict[str, Any]] = {name: {} for name in codes.names}
  if len(cs) > 1:
    _, held = labels.hold_out(len(train), seed)
    used = np.ones(len(train), bool)
    used[held] = False
    path, shares = [], []
    for c in cs:
      # From the solution of the next stronger penalty, which is near.
      start, _ = regression.fit(used, np.full(len(every), c), start)
      path.append(start)
      right = logistic.predict(start, x[held], mask) == codes.codes[held].T
      shares.append(right.mean(1))  # (labels,)
      advance(1)
    best = np.argmax(shares, axis=0)  # of equals the strongest penalty
    start = jax.tree.map(lambda *leaves: np.stack(leaves)[best, every], *path)
    for number, name in enumerate(codes.names):
      row = [float(share[number]) for share in shares]
      chosen[name] = {
        'chosen on': f'{len(held):,} images held out of train, then fitted '
        'again on all of it',
        'held-out top1': row[best[number]],
        'sweep': [
          {'C': c, 'held-out top1': share} for c, share in zip(cs, row)
        ],
      }
  params, steps = regression.fit(
    np.ones(len(train), bool), np.array(cs)[best], start
  )
  advance(1)
  guesses = logistic.predict(params, x_test, mask)
  return (
    {
      name: codes.classes[number][guesses[number]]
      for number, name in enumerate(codes.names)
    },
    {
      name: {
        'features': 'last layer, average-pooled, standardised',
        'chosen': {'C': cs[best[number]]},
        'steps of L-BFGS': int(steps[number]),
        **chosen[name],
      }
      for number, name in enumerate(codes.names)
    },
  )
