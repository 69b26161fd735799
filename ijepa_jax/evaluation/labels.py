"""Labels of any number of classes as one array, for heads side by side."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

_HELD_OUT = 0.1
_MOST_HELD = 10_000


@dataclasses.dataclass(frozen=True)
class Codes:
  """Labels as positions among the classes that train has.

  Attributes:
    names: of the labels.
    classes: for each its classes, rising.
    codes: `(n, labels)` int32 of train.
  """

  names: tuple[str, ...]
  classes: tuple[np.ndarray, ...]
  codes: np.ndarray

  @property
  def width(self) -> int:
    """Classes of the label that has most."""
    return max(map(len, self.classes))

  def mask(self) -> np.ndarray:
    """`(labels, width)` float32: 0 for a class, -inf where there is none."""
    mask = np.full((len(self.names), self.width), -np.inf, np.float32)
    for row, classes in zip(mask, self.classes):
      row[: len(classes)] = 0.0
    return mask


def encode(labels: Mapping[str, np.ndarray]) -> Codes:
  """Codes of the labels of train."""
  pairs = [np.unique(y, return_inverse=True) for y in labels.values()]
  return Codes(
    tuple(labels),
    tuple(classes for classes, _ in pairs),
    np.stack([code for _, code in pairs], 1).astype(np.int32),
  )


def cross_entropies(
  logits: jax.Array,
  codes: jax.Array,
  mask: jax.typing.ArrayLike,
  label: jax.typing.ArrayLike,
) -> jax.Array:
  """Losses `(B,)` of one label.

  Args:
    logits: `(B, width)`.
    codes: `(B, labels)`.
    mask: as of `Codes.mask`.
    label: its number.
  """
  return optax.softmax_cross_entropy_with_integer_labels(
    logits + jnp.asarray(mask)[label], jnp.take(codes, label, axis=1)
  )


def cross_entropy(
  logits: jax.Array,
  codes: jax.Array,
  mask: jax.typing.ArrayLike,
  label: jax.typing.ArrayLike,
) -> jax.Array:
  """Their mean; arguments as of `cross_entropies`."""
  return cross_entropies(logits, codes, mask, label).mean()


def hold_out(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Rows to fit on, and a tenth (at most 10,000) to choose by; both rising."""
  order = np.random.default_rng(seed).permutation(count)
  held = min(_MOST_HELD, max(1, round(_HELD_OUT * count)))
  return np.sort(order[held:]), np.sort(order[:held])
