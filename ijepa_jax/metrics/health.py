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
| LiDAR                         | above 25     | 1.0-1.3  | below 2          |

LiDAR's failing runs are those with black images (docs/training-health.md): it
is judged from the first row on, as broken data does not wait for training. The
two above it are of the time after the warm-up: until then a healthy predictor,
too, says the same of every patch (0.013 at step 60). All runs are short:
"healthy" means that features spread, not that probes had improved yet. Larger
models and longer runs have not been measured.
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

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
  lidar: float
  width: int  # D
  settled: bool  # the first steps are over
  warm: bool  # and so is the warm-up


class _Cause(NamedTuple):
  """What a figure should not be: on the wrong side of a limit.

  The limit is NaN where nothing is judged yet. Comparisons with NaN are false,
  so what was not measured is never wrong.
  """

  side: Literal['below', 'above']
  limit: Callable[[_Reading], float]
  message: str
  remedy: str = _REMEDY


_CAUSES = {
  'rankme': _Cause(
    'below',
    # A share of D as well: training may move 300 directions to 150, not to 50.
    lambda r: min(0.5 * r.best_rankme, 0.05 * r.width),
    'RankMe fell from {best_rankme:.1f} to {rankme:.1f} of {width}: features '
    'use few directions, so they say little about an image (partial collapse)',
  ),
  'feature_std': _Cause(
    'below',
    lambda r: 0.25 * r.best_std,
    'the deviation of features over images fell from {best_std:.2g} to '
    '{feature_std:.2g}: all images look alike to the encoder (collapse)',
  ),
  'image_cosine': _Cause(
    'above',
    # Before training, deep encoders give all images nearly the same features.
    lambda r: 0.99 if r.warm else math.nan,
    'the features of different images have a mean cosine of '
    '{image_cosine:.3f}: all images look alike to the encoder (collapse)',
  ),
  'target_variance': _Cause(
    'below',
    # Targets are layer-normalised: their variance is 1 where the mean is 0.
    lambda r: 0.02 if r.settled else math.nan,
    'the variance of targets is {target_variance:.2g} of at most 1: every '
    'patch of every image has the same target, so there is nothing to learn '
    '(collapse)',
  ),
  'prediction_variance': _Cause(
    'below',
    lambda r: 0.02 * r.target_variance if r.warm else math.nan,
    'predictions vary {prediction_variance:.2g}, targets '
    '{target_variance:.2g}: the predictor says the same everywhere and ignores '
    'its context',
  ),
  'prediction_target_cosine': _Cause(
    'below',
    lambda r: 0.1 if r.warm else math.nan,
    'predictions and targets have a mean cosine of '
    '{prediction_target_cosine:.2f} after the warm-up: nothing is being '
    'learnt',
  ),
  'lidar': _Cause(
    'below',
    lambda _: 2.0,
    'LiDAR is {lidar:.2f}: held-out images differ in hardly more than one '
    'direction, as where many of them are blank or the same',
    'look at images of the data, as masks.png has them',
  ),
}


class Judged(NamedTuple):
  """A figure, and what it was held to.

  Attributes:
    value: as measured.
    side: where it would be bad: 'below' the limit, or 'above' it.
    limit: NaN where the figure is not judged, as in the first steps.
  """

  value: float
  side: Literal['below', 'above']
  limit: float

  @property
  def bad(self) -> bool:
    """Whether a run is warned about it."""
    if self.side == 'below':
      return self.value < self.limit
    return self.value > self.limit


class HealthWatch:
  """Watches the rows of a run and says, once per onset, what looks wrong.

  A resumed run feeds it the rows of its metrics.jsonl and ignores the answers,
  so that it neither repeats a warning nor forgets what was normal.

  Attributes:
    judged: figure -> how it was when it was last measured.
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
    self.judged: dict[str, Judged] = {}

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
    for name, cause in _CAUSES.items():
      if math.isnan(figures[name]):
        continue
      judged = Judged(figures[name], cause.side, cause.limit(reading))
      self.judged[name] = judged
      if judged.bad:
        if self._absent.get(name, _QUIET_READINGS) >= _QUIET_READINGS:
          what = cause.message.format(**reading._asdict())
          warnings.append(f'warning: {what}; {cause.remedy}')
        self._absent[name] = 0
      elif name in self._absent:
        self._absent[name] += 1
    return warnings
