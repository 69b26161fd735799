"""Figures that show whether an encoder's features are collapsing.

All take the features of different images and need no labels.
"""

import numpy as np

_EPS = 1e-7  # Garrido et al. 2023, equation 1, for float32 features
_RIDGE = 1e-4  # delta of Thilak et al. 2023, added to the scatter within


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
  return _smooth_rank(np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0.0, None)))


def lidar(views: np.ndarray) -> float:
  """Smooth rank of what tells images apart, whatever view one has of them.

  Each image is a class and its views are the samples: the entropy is that of
  the eigenvalues of linear discriminant analysis, W^-1/2 B W^-1/2, with B the
  covariance of the images' mean features and W that of views around them plus
  1e-4 on its diagonal. Unlike RankMe it does not count directions in which
  features vary with the view alone. Source: Thilak et al. 2023, arXiv
  2312.04000.

  Args:
    views: (n, q, D) features of q views of each of n images, q at least 2. The
      means of few views are noisy: a direction that says nothing counts 1 / q.

  Returns:
    From 1 (images differ in one direction only) to min(n - 1, D); 0 when all
    images have the same mean.
  """
  x = np.asarray(views, np.float64)
  n, q, width = x.shape
  means = x.mean(1)  # (n, D)
  within = (x - means[:, None]).reshape(n * q, width)
  between = means - means.mean(0)
  scatter = within.T @ within / (n * q) + _RIDGE * np.eye(width)
  # B = A^T A, so with W = L L^T the eigenvalues are those of L^-1 A^T A L^-T.
  whitened = np.linalg.solve(np.linalg.cholesky(scatter), between.T)  # (D, n)
  values = np.linalg.eigvalsh(whitened @ whitened.T / n)
  return _smooth_rank(np.clip(values, 0.0, None))


def _smooth_rank(values: np.ndarray) -> float:
  """The exponential of the entropy of values over their sum; 0 for zeros."""
  if not values.any():
    return 0.0
  p = values / values.sum() + _EPS
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
