"""95 % intervals of figures measured on a sample of images."""

import math
from collections.abc import Callable, Sequence

import jax
import numpy as np

# The two-sided 95 % quantile of the normal distribution.
_Z = 1.959963984540054


def wilson(correct: int, total: int) -> tuple[float, float]:
  """Interval of a share, 0..1 (Wilson 1927).

  Unlike value +- 1.96 standard errors it stays within 0..1 and holds near its
  ends and for few images.

  Args:
    correct: hits.
    total: tries, at least 1.
  """
  if total < 1:
    raise ValueError(f'{total} tries: expected at least 1')
  share = correct / total
  spread = _Z / (1 + _Z**2 / total)
  centre = (share + _Z**2 / (2 * total)) / (1 + _Z**2 / total)
  half = spread * math.sqrt(
    share * (1 - share) / total + _Z**2 / (4 * total**2)
  )
  return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(
  statistic: Callable[[np.ndarray], dict[str, float]],
  total: int,
  *,
  seed: int,
  samples: int = 1000,
) -> dict[str, tuple[float, float]]:
  """Percentile intervals of any figures: images are drawn with replacement.

  Args:
    statistic: the figures, by name, of the images with these numbers
      `(total,)`, which may repeat.
    total: how many images there are.
    seed: of the draws.
    samples: how many draws.
  """
  rng = np.random.default_rng(seed)
  drawn = [
    statistic(rng.integers(0, total, size=total)) for _ in range(samples)
  ]
  intervals = {}
  for name in drawn[0]:
    values = [figures[name] for figures in drawn]
    low, high = np.quantile(values, (0.025, 0.975))
    intervals[name] = float(low), float(high)
  return intervals


def of_mean(values: Sequence[float]) -> tuple[float, float]:
  """Interval of the mean of a few values, as of seeds (Student 1908).

  Args:
    values: at least 2, independent, about normal.
  """
  if len(values) < 2:
    raise ValueError(f'{len(values)} values: expected at least 2')
  error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
  half = _student_quantile(len(values) - 1) * error
  mean = float(np.mean(values))
  return mean - half, mean + half


def _student_quantile(freedom: int) -> float:
  """The two-sided 95 % quantile of Student's t, to 4 digits."""
  low, high = 0.0, 20.0  # of one degree of freedom: 12.7
  for _ in range(30):
    t = (low + high) / 2
    share = freedom / (freedom + t**2)
    outside = jax.scipy.special.betainc(freedom / 2, 0.5, share)
    low, high = (t, high) if float(outside) > 0.05 else (low, t)
  return high
