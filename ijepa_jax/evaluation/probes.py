"""Two probes of frozen features that need no training: k-NN and ridge.

Both take the features once and any number of labels, because the expensive
part (similarities, Gram matrix) does not depend on the labels. Written in numpy
and blocked over rows, so memory stays near that of the features.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from ijepa_jax.evaluation import moments

# Ridge penalties per training example. Features are standardised, so the Gram
# matrix divided by n has ones on its diagonal and the grid fits every encoder.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)

_BLOCK_ELEMENTS = 2**23  # of a similarity block or a block of float64 rows

Labels = Mapping[str, np.ndarray]


class Chosen(NamedTuple):
  """A penalty, and the accuracy on held-out examples that it was chosen by."""

  accuracy: float
  penalty: float


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
  """Share of equal entries, 0..1."""
  return float(np.mean(predicted == labels))


def chance(train: np.ndarray, test: np.ndarray) -> float:
  """Accuracy on test of always guessing train's commonest class, 0..1.

  Args:
    train: (n,) integers.
    test: (m,) integers.
  """
  classes, counts = np.unique(train, return_counts=True)
  return float(np.mean(test == classes[counts.argmax()]))


def knn_predict(
  train_x: np.ndarray,
  train_labels: Labels,
  test_x: np.ndarray,
  *,
  k: int = 20,
  temperature: float = 0.07,
) -> dict[str, np.ndarray]:
  """Weighted k-NN by DINO's protocol (Caron et al. 2021, `eval_knn.py`).

  Features are L2-normalised; the k training images with the largest cosine
  vote for their class with weight exp(cosine / temperature).

  Args:
    train_x: (n, D) features.
    train_labels: label name -> (n,) integers.
    test_x: (m, D) features.
    k: neighbours; all n when there are fewer.
    temperature: of the votes.

  Returns:
    Label name -> (m,) predicted labels.
  """
  train, test = _unit_rows(train_x), _unit_rows(test_x)
  n = len(train)
  k = min(k, n)
  codes = {
    name: np.unique(y, return_inverse=True) for name, y in train_labels.items()
  }
  predicted: dict[str, list[np.ndarray]] = {name: [] for name in codes}
  for rows in _blocks(len(test), n):
    similarity = test[rows] @ train.T  # (b, n)
    nearest = np.argpartition(similarity, n - k, axis=1)[:, n - k :]  # (b, k)
    cosine = np.take_along_axis(similarity, nearest, axis=1)
    weights = np.exp(cosine.astype(np.float64) / temperature)
    for name, (classes, code) in codes.items():
      votes = _votes(code[nearest], weights, len(classes))  # (b, C)
      predicted[name].append(classes[votes.argmax(axis=1)])
  return {name: np.concatenate(parts) for name, parts in predicted.items()}


def ridge_predict(
  train_x: np.ndarray,
  train_labels: Labels,
  test_x: np.ndarray,
  *,
  penalties: Sequence[float] = PENALTIES,
) -> dict[str, np.ndarray]:
  """Linear probe in closed form: ridge regression to one-hot targets.

  Features are standardised with the training set's mean and deviation, and an
  intercept is fitted without penalty. Each label's penalty is the one with the
  best accuracy on a held-out fifth of the training set (the larger of equals);
  the weights are then fitted again on all of it.

  Args:
    train_x: (n, D) features, n at least 2.
    train_labels: label name -> (n,) integers.
    test_x: (m, D) features.
    penalties: of the squared weights, per training example.

  Returns:
    Label name -> (m,) predicted labels.
  """
  predict, _ = fit_ridge(train_x, train_labels, penalties)
  return predict(test_x)


def fit_ridge(
  train_x: np.ndarray,
  train_labels: Labels,
  penalties: Sequence[float] = PENALTIES,
) -> tuple[Callable[[np.ndarray], dict[str, np.ndarray]], dict[str, Chosen]]:
  """The same for any number of test sets: (m, D) -> predicted labels.

  Returns:
    That function, and what was chosen for each label.
  """
  # Folders come sorted by class, so the fifth is drawn, always the same way.
  order = np.random.default_rng(0).permutation(len(train_x))
  size = max(1, len(order) // 5)
  # Rising again: features on disk are read from the front to the end.
  held, rest = np.sort(order[:size]), np.sort(order[size:])

  one_hot = _OneHot(train_labels)
  ridge = Ridge(train_x, one_hot)
  ridge.add(rest)
  best: dict[str, Chosen] = {}
  for penalty in penalties:
    scores = ridge.fit(penalty)(train_x[held])
    for name, y in train_labels.items():
      share = accuracy(one_hot.decode(name, scores), y[held])
      best[name] = max(
        best.get(name, Chosen(-1.0, 0.0)), Chosen(share, penalty)
      )

  ridge.add(held)
  fitted = {one.penalty: ridge.fit(one.penalty) for one in best.values()}

  def predict(test_x: np.ndarray) -> dict[str, np.ndarray]:
    scores_of = {penalty: scores(test_x) for penalty, scores in fitted.items()}
    return {
      name: one_hot.decode(name, scores_of[one.penalty])
      for name, one in best.items()
    }

  return predict, best


class _OneHot:
  """One-hot targets of several labels, side by side in C columns."""

  def __init__(self, labels: Labels):
    self._classes: dict[str, np.ndarray] = {}
    self._columns: dict[str, slice] = {}
    self._hot: list[np.ndarray] = []  # per label: (n,) columns that are one
    self.width = 0
    for name, y in labels.items():
      classes, code = np.unique(y, return_inverse=True)
      end = self.width + len(classes)
      self._classes[name] = classes
      self._columns[name] = slice(self.width, end)
      self._hot.append(self.width + code)
      self.width = end

  def encode(self, rows: np.ndarray) -> np.ndarray:
    """Targets (b, C) of the examples numbered `rows` (b,)."""
    y = np.zeros((len(rows), self.width))
    for columns in self._hot:
      y[np.arange(len(rows)), columns[rows]] = 1.0
    return y

  def decode(self, name: str, scores: np.ndarray) -> np.ndarray:
    """Labels (b,) with the highest of the scores (b, C)."""
    return self._classes[name][scores[:, self._columns[name]].argmax(axis=1)]


class Targets(Protocol):
  """What a ridge regression predicts: C numbers for each example."""

  width: int  # C

  def encode(self, rows: np.ndarray) -> np.ndarray:
    """Targets (b, C) float64 of the examples numbered `rows` (b,)."""


class Ridge:
  """Ridge regression of standardised features; examples can be added.

  It keeps sums over examples only: the Gram matrix is made once for all
  penalties and labels, and the held-out fifth joins it without starting again.
  """

  def __init__(self, x: np.ndarray, targets: Targets):
    self._x, self._targets = x, targets
    self._mean, self._scale = moments.of(x, np.arange(len(x)))
    d, c = x.shape[1], targets.width
    self._n, self._sum_x, self._sum_y = 0, np.zeros(d), np.zeros(c)
    self._xx, self._xy = np.zeros((d, d)), np.zeros((d, c))

  def add(self, rows: np.ndarray) -> None:
    """Adds the training examples numbered `rows`."""
    self._n += len(rows)
    for block in _blocks(len(rows), self._x.shape[1]):
      x = self._standardised(self._x[rows[block]])  # (b, D) float64
      y = self._targets.encode(rows[block])  # (b, C)
      self._sum_x += x.sum(axis=0)
      self._sum_y += y.sum(axis=0)
      self._xx += x.T @ x
      self._xy += x.T @ y

  def fit(self, penalty: float) -> Callable[[np.ndarray], np.ndarray]:
    """Fits the examples added so far; returns x (b, D) -> scores (b, C)."""
    # Centring the sums is what leaves the intercept without penalty.
    centre_x, centre_y = self._sum_x / self._n, self._sum_y / self._n
    gram = self._xx - np.outer(self._sum_x, centre_x)
    gram.flat[:: len(gram) + 1] += penalty * self._n
    cross = self._xy - np.outer(self._sum_x, centre_y)
    weights = np.linalg.solve(gram, cross)  # (D, C)
    bias = centre_y - centre_x @ weights

    def scores(x: np.ndarray) -> np.ndarray:
      blocks = (self._standardised(x[b]) for b in _blocks(len(x), x.shape[1]))
      return np.concatenate([block @ weights + bias for block in blocks])

    return scores

  def _standardised(self, x: np.ndarray) -> np.ndarray:
    return (x.astype(np.float64) - self._mean) * self._scale


def _votes(
  classes: np.ndarray, weights: np.ndarray, num_classes: int
) -> np.ndarray:
  """Sums weights (b, k) into votes (b, C) by the classes (b, k)."""
  b = len(classes)
  cells = np.arange(b)[:, None] * num_classes + classes
  votes = np.bincount(cells.ravel(), weights.ravel(), b * num_classes)
  return votes.reshape(b, num_classes)


def _unit_rows(x: np.ndarray) -> np.ndarray:
  """Rows scaled to length 1, float32; a row of zeros stays."""
  x = np.asarray(x, np.float32)
  return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _blocks(n: int, width: int) -> Iterator[slice]:
  """Slices that cover n rows of `width` numbers in blocks of bounded size."""
  size = max(1, _BLOCK_ELEMENTS // width)
  for start in range(0, n, size):
    yield slice(start, start + size)
