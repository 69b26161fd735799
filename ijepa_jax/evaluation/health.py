"""Three figures that show whether an encoder's features are collapsing.

All take the features of different images, one row each, and need no labels.
"""

import numpy as np

_EPS = 1e-7  # Garrido et al. 2023, equation 1, for float32 features


def rankme(features: np.ndarray) -> float:
  """Smooth rank of the features: exp of the entropy of the singular values.

  p_k = sigma_k / sum(sigma) + 1e-7, RankMe = exp(-sum p_k log p_k); the matrix
  is not centred. Source: Garrido et al. 2023, arXiv 2210.02885.

  Args:
    features: (n, D), any float type. RankMe cannot exceed min(n, D), so n
      should be at least 2 D where the value is compared with others.

  Returns:
    From 1 (every image has the same features up to scale) to min(n, D) (all
    directions are used alike); 0 when all features are zero.
  """
  x = np.asarray(features, np.float64)
  # Squaring costs half the digits: 1e-8 of the largest singular value is left
  # in float64, ten times less than the epsilon of the definition.
  gram = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
  sigma = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0.0, None))
  if not sigma.any():
    return 0.0
  p = sigma / sigma.sum() + _EPS
  return float(np.exp(-np.sum(p * np.log(p))))


def feature_std(features: np.ndarray) -> float:
  """Standard deviation over images, averaged over the D features.

  In the units of the features, so near 0 when all images look alike to the
  encoder. features: (n, D).
  """
  return float(np.std(features, axis=0, dtype=np.float64).mean())


def mean_cosine(features: np.ndarray) -> float:
  """Mean cosine similarity over all pairs of different images, in -1..1.

  Args:
    features: (n, D) with n at least 2.
  """
  x = np.asarray(features, np.float64)
  n = len(x)
  x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
  # The sum over all pairs is the squared norm of the sum; n of them are of an
  # image with itself (or 0, where an image has no features at all).
  total = np.sum(np.sum(x, axis=0) ** 2) - np.sum(x * x)
  return float(total / (n * (n - 1)))
