"""Exact weighted k-NN on the device, in blocks, for any number of labels."""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

# Rows of train and of test whose similarities are held at once: 64 MB.
_TRAIN_ROWS = 16_384
_TEST_ROWS = 1_024


def predict(
  train: np.ndarray,
  train_labels: Mapping[str, np.ndarray],
  test: np.ndarray,
  ks: Sequence[int],
  *,
  temperature: float,
  advance: Callable[[int], None] = lambda count: None,
) -> dict[str, dict[int, np.ndarray]]:
  """DINO's protocol (Caron et al. 2021, `eval_knn.py`).

  The k training images with the largest cosine vote for their class with
  weight exp(cosine / temperature). Of equally similar images the one that
  comes first counts.

  Args:
    train: `(n, D)` features, which may be mapped from disk.
    train_labels: label name -> `(n,)` integers.
    test: `(m, D)` features, likewise.
    ks: numbers of neighbours; n where it is larger.
    temperature: of the votes.
    advance: told how many rows of train were looked at.

  Returns:
    Label name -> k -> `(m,)` predicted labels.
  """
  k = min(max(ks), len(train))
  firsts = range(0, len(test), _TEST_ROWS)
  found = _search(train, test, firsts, k, advance)
  predicted: dict[str, dict[int, np.ndarray]] = {}
  for name, y in train_labels.items():
    classes, code = np.unique(y, return_inverse=True)
    codes = jnp.asarray(code.astype(np.int32))
    predicted[name] = {}
    for wanted in ks:
      used = min(wanted, k)
      votes = [
        _vote(
          cosine[:, :used], codes[nearest[:, :used]], temperature, len(classes)
        )
        for cosine, nearest in found
      ]
      predicted[name][wanted] = classes[np.concatenate(votes)[: len(test)]]
  return predicted


def _search(
  train: np.ndarray,
  test: np.ndarray,
  firsts: range,
  k: int,
  advance: Callable[[int], None],
) -> list[tuple[jax.Array, jax.Array]]:
  """Of each block of test, cosines and row numbers `(b, k)`, nearest first.

  Train, the larger of the two, is read once.
  """
  rows = max(k, min(_TRAIN_ROWS, len(train)))
  best = [
    (
      jnp.full((_TEST_ROWS, k), -jnp.inf),
      jnp.zeros((_TEST_ROWS, k), jnp.int32),
    )
  ] * len(firsts)
  for start in range(0, len(train), rows):
    part = train[start : start + rows]
    unit = _unit(_padded(part, rows))
    for number, first in enumerate(firsts):
      block = _unit(_padded(test[first : first + _TEST_ROWS], _TEST_ROWS))
      best[number] = _merge(*best[number], block, unit, start, len(part))
    jax.block_until_ready(best)
    advance(len(part))
  return best


@jax.jit
def _merge(
  cosine: jax.Array,
  nearest: jax.Array,
  block: jax.Array,
  train: jax.Array,
  start: jax.Array,
  count: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """The best of those known and of `count` more rows of train."""
  similarity = jnp.matmul(block, train.T, precision='highest')
  number = jnp.arange(len(train))
  similarity = jnp.where(number < count, similarity, -jnp.inf)
  values, found = jax.lax.top_k(similarity, cosine.shape[1])
  # Those known come first: of equals, the earlier row stays.
  values = jnp.concatenate([cosine, values], 1)
  rows = jnp.concatenate([nearest, found + start], 1)
  values, order = jax.lax.top_k(values, cosine.shape[1])
  return values, jnp.take_along_axis(rows, order, 1)


@functools.partial(jax.jit, static_argnums=3)
def _vote(
  cosine: jax.Array, codes: jax.Array, temperature: float, classes: int
) -> jax.Array:
  """Class `(b,)` with most votes."""
  # The largest factored out: weights neither overflow nor vanish.
  weights = jnp.exp((cosine - cosine[:, :1]) / temperature)
  rows = jnp.arange(len(codes))

  def add(votes: jax.Array, one: tuple[jax.Array, jax.Array]) -> tuple:
    # A neighbour at a time: no two additions to one cell, so their order, and
    # with it the last bit, is the same on every device.
    code, weight = one
    return votes.at[rows, code].add(weight, unique_indices=True), None

  votes = jnp.zeros((len(codes), classes))
  votes, _ = jax.lax.scan(add, votes, (codes.T, weights.T))
  return votes.argmax(1)


@jax.jit
def _unit(x: jax.Array) -> jax.Array:
  """Rows scaled to length 1; a row of zeros stays."""
  return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _padded(x: np.ndarray, rows: int) -> np.ndarray:
  """Filled up with zeros: one shape is one compilation."""
  result = np.zeros((rows, x.shape[1]), np.float32)
  result[: len(x)] = x
  return result
