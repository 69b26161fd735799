"""Plain-language warnings when the figures of a run say collapse.

A rising loss is no sign of trouble and never warned about: the targets of
I-JEPA get richer, and so harder to predict, as the target encoder learns.

Thresholds lie between what was measured on vit_micro at 32 pixels, 480 steps of
24 images of CIFAR-10 and scenes (healthy: optim.ema 0.98, optim.lr 1e-3), and
240 steps of a run made to fail (momentum 0, optim.lr 5e-3):

| figure                        | healthy      | failing  | warned about     |
|-------------------------------|--------------|----------|------------------|
| RankMe / best so far          | above 0.79   | 0.43     | below 0.5        |
| feature deviation / best      | above 0.72   | 0.19     | below 0.25       |
| image cosine                  | below 0.986  | 0.999    | above 0.99       |
| target variance               | above 0.13   | 0.003    | below 0.02       |
| prediction / target variance  | above 0.3    | 0.003    | below 0.02       |
| prediction-target cosine      | above 0.7    | 0.03     | below 0.1        |

The last two are of the time after the warm-up: until then a healthy predictor,
too, says the same of every patch (0.013 at step 60). All runs are short:
"healthy" means that features spread, not that probes had improved yet. Larger
models and longer runs have not been measured.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

# Even with a short warm-up, a fast target encoder comes near collapse in its
# first 200 steps and recovers (target variance 0.029 with optim.ema 0.9).
_GRACE_STEPS = 500
# A warning is repeated once its cause was absent for this many readings: a
# figure that trembles around its threshold warns once.
_QUIET_READINGS = 5

_REMEDY = (
  'try a lower optim.lr, a longer optim.warmup_epochs or an optim.ema closer '
  'to 1'
)


class _Reading(NamedTuple):
  """Figures of one row (NaN where it has none) and what they are held to."""

  rankme: float
  feature_std: float
  image_cosine: float
  target_variance: float
  prediction_variance: float
  prediction_target_cosine: float
  best_rankme: float  # highest so far
  best_std: float
  width: int  # D
  settled: bool  # the first steps are over
  warm: bool  # and so is the warm-up


# Cause -> (is it there, what to say). Comparisons with NaN are false, so what
# was not measured is never wrong.
_CAUSES: dict[str, tuple[Callable[[_Reading], bool], str]] = {
  'rankme': (
    # A share of D as well: training may move 300 directions to 150, not to 50.
    lambda r: r.rankme < min(0.5 * r.best_rankme, 0.05 * r.width),
    'RankMe fell from {best_rankme:.1f} to {rankme:.1f} of {width}: features '
    'use few directions, so they say little about an image (partial collapse)',
  ),
  'feature_std': (
    lambda r: r.feature_std < 0.25 * r.best_std,
    'the deviation of features over images fell from {best_std:.2g} to '
    '{feature_std:.2g}: all images look alike to the encoder (collapse)',
  ),
  'image_cosine': (
    # Before training, deep encoders give all images nearly the same features.
    lambda r: r.warm and r.image_cosine > 0.99,
    'the features of different images have a mean cosine of '
    '{image_cosine:.3f}: all images look alike to the encoder (collapse)',
  ),
  'target_variance': (
    # Targets are layer-normalised: their variance is 1 where the mean is 0.
    lambda r: r.settled and r.target_variance < 0.02,
    'the variance of targets is {target_variance:.2g} of at most 1: every '
    'patch of every image has the same target, so there is nothing to learn '
    '(collapse)',
  ),
  'prediction_variance': (
    lambda r: r.warm and r.prediction_variance < 0.02 * r.target_variance,
    'predictions vary {prediction_variance:.2g}, targets '
    '{target_variance:.2g}: the predictor says the same everywhere and ignores '
    'its context',
  ),
  'prediction_target_cosine': (
    lambda r: r.warm and r.prediction_target_cosine < 0.1,
    'predictions and targets have a mean cosine of '
    '{prediction_target_cosine:.2f} after the warm-up: nothing is being '
    'learnt',
  ),
}


class HealthWatch:
  """Watches the rows of a run and says, once per onset, what looks wrong.

  A resumed run feeds it the rows of its metrics.jsonl and ignores the answers,
  so that it neither repeats a warning nor forgets what was normal.
  """

  def __init__(self, feature_width: int, warmup_steps: int):
    """Makes a watch that has seen nothing.

    Args:
      feature_width: D of the features whose RankMe is measured.
      warmup_steps: of the learning rate; some figures are judged only after.
    """
    self._width = feature_width
    self._warmup_steps = warmup_steps
    self._best = {'rankme': -math.inf, 'feature_std': -math.inf}
    self._absent: dict[str, int] = {}  # cause seen -> readings without it since

  def check(self, step: int, metrics: Mapping[str, float]) -> list[str]:
    """Takes the next row of figures.

    Args:
      step: number of updates done.
      metrics: any of the figures health/*.

    Returns:
      Warnings whose cause is new, each one line.
    """
    figures = {
      name: metrics.get(f'health/{name}', math.nan) for name in _CAUSES
    }
    for name, best in self._best.items():
      self._best[name] = max(best, figures[name])  # NaN leaves it
    reading = _Reading(
      **figures,
      best_rankme=self._best['rankme'],
      best_std=self._best['feature_std'],
      width=self._width,
      settled=step >= _GRACE_STEPS,
      warm=step >= max(self._warmup_steps, _GRACE_STEPS),
    )
    warnings = []
    for cause, (is_there, message) in _CAUSES.items():
      if math.isnan(figures[cause]):
        continue
      if is_there(reading):
        if self._absent.get(cause, _QUIET_READINGS) >= _QUIET_READINGS:
          what = message.format(**reading._asdict())
          warnings.append(f'warning: {what}; {_REMEDY}')
        self._absent[cause] = 0
      elif cause in self._absent:
        self._absent[cause] += 1
    return warnings
