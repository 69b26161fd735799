"""What a task finds out, for one encoder and beside its baselines."""

import dataclasses
from typing import Any

# Metrics that are shares, 0..1, and are shown in %.
SHARES = ('top1', 'mIoU', 'AP', 'AP50', 'AP75')


@dataclasses.dataclass(frozen=True)
class Score:
  """A figure of one feature extractor on the test images.

  Attributes:
    label: name of the source's label.
    metric: 'top1', 'mIoU', 'AP50' and so on; shares are 0..1.
    value: the figure.
    low: lower end of its 95 % interval.
    high: upper end.
    chance: what the same metric is without looking at any image: always the
      commonest class of train, always its mean. Measured on test.
    details: what was chosen and on what, the whole sweep; as JSON has it.
  """

  label: str
  metric: str
  value: float
  low: float
  high: float
  chance: float
  details: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Result:
  """A `Score` of the trained encoder, and of what it has to beat.

  Attributes:
    task: its name in `tasks.TASKS`.
    label: as of `Score`, like all up to `chance`.
    metric: likewise.
    value: likewise.
    low: likewise.
    high: likewise.
    chance: likewise.
    pixels: the same protocol on raw pixels; None where it has no meaning,
      which `details` then explains.
    init: the same protocol on an encoder that was never trained; None where
      the user left it out.
    details: those of the trained encoder; under 'pixels' and 'init' interval
      and details of the baselines.
  """

  task: str
  label: str
  metric: str
  value: float
  low: float
  high: float
  chance: float
  pixels: float | None
  init: float | None
  details: dict[str, Any]

  def to_dict(self) -> dict[str, Any]:
    """For results.json."""
    return dataclasses.asdict(self)


def join(
  task: str,
  trained: list[Score],
  init: list[Score] | None,
  pixels: list[Score] | None,
) -> list[Result]:
  """Puts the scores of the three extractors side by side.

  Args:
    task: name.
    trained: of the encoder; sets which labels and metrics there are.
    init: of the untrained encoder, if it was measured.
    pixels: of raw pixels, if they were measured.
  """
  baselines = {
    name: {(score.label, score.metric): score for score in scores or ()}
    for name, scores in (('pixels', pixels), ('init', init))
  }
  results = []
  for score in trained:
    values: dict[str, float | None] = {}
    details = dict(score.details)
    for name, scores in baselines.items():
      found = scores.get((score.label, score.metric))
      values[name] = None if found is None else found.value
      if found is not None:
        details[name] = {
          'low': found.low,
          'high': found.high,
          **found.details,
        }
    results.append(
      Result(
        task=task,
        label=score.label,
        metric=score.metric,
        value=score.value,
        low=score.low,
        high=score.high,
        chance=score.chance,
        pixels=values['pixels'],
        init=values['init'],
        details=details,
      )
    )
  return results
