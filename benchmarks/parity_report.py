"""The table of differences that `parity.py` prints, row by row."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from ijepa_jax import errors

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Row:
  """One comparison.

  Attributes:
    source: the file that the expected numbers are from.
    quantity: what was compared.
    difference: the largest one.
    tolerance: the largest difference that passes.
  """

  source: str
  quantity: str
  difference: float
  tolerance: float

  @property
  def passed(self) -> bool:
    """Whether the difference is a number, and no larger than the tolerance."""
    return self.difference <= self.tolerance


class Report:
  """Prints each row when it is known, and keeps them all."""

  def __init__(self) -> None:
    self.rows: list[Row] = []
    self.skipped: list[tuple[str, str]] = []
    print(_line('file', 'quantity', 'difference', 'tolerance', ''))

  @property
  def failed(self) -> list[Row]:
    """The rows that did not pass."""
    return [row for row in self.rows if not row.passed]

  def add(
    self, source: str, quantity: str, difference: float, tolerance: float
  ) -> Row:
    """Adds and prints a row."""
    row = Row(source, quantity, float(difference), tolerance)
    self.rows.append(row)
    numbers = f'{row.difference:.1e}', f'{tolerance:.1e}'
    verdict = 'pass' if row.passed else 'FAIL'
    print(_line(source, quantity, *numbers, verdict), flush=True)
    return row

  def compare(
    self,
    source: str,
    quantity: str,
    ours: Any,
    theirs: Any,
    tolerance: float,
  ) -> Row:
    """Adds a row for the `difference` of two arrays."""
    return self.add(source, quantity, difference(ours, theirs), tolerance)

  def add_tensors(
    self,
    source: str,
    quantity: str,
    ours: Arrays,
    theirs: Arrays,
    tolerances: tuple[float, float],
    *,
    scaled: bool = False,
  ) -> None:
    """Adds a row for the worst of many tensors, and one for the key biases.

    Args:
      source: the file.
      quantity: what the tensors are.
      ours: by the reference's names.
      theirs: all of them or some.
      tolerances: of both rows.
      scaled: divide by the largest value of a tensor, but for key biases.

    Raises:
      UserError: we have no tensor of one of the names.
    """
    if unknown := absent(theirs, ours):
      raise errors.UserError(f'{source}: {quantity}: unknown tensors {unknown}')
    tensors, key_biases = tensor_differences(ours, theirs, scaled=scaled)
    for kind, differences, tolerance in zip(
      ('tensors', 'key biases'), (tensors, key_biases), tolerances, strict=True
    ):
      if differences:
        worst = max(differences, key=lambda name: _rank(differences[name]))
        many = f'{quantity} ({len(differences)} {kind})'
        row = self.add(source, many, differences[worst], tolerance)
        if not row.passed:
          print(f'  the worst is {worst}', flush=True)

  def skip(self, source: str, quantity: str, reason: str) -> None:
    """Names what is not compared, and why."""
    self.skipped.append((source, quantity))
    print(f'{source:<22} skipped: {quantity}: {reason}', flush=True)

  def summary(self) -> str:
    """The last line."""
    return (
      f'{len(self.rows)} compared, {len(self.failed)} failed, '
      f'{len(self.skipped)} skipped'
    )


def _line(*cells: str) -> str:
  return '{:<22} {:<37} {:>10} {:>9}  {}'.format(*cells).rstrip()


def _rank(difference: float) -> float:
  """Not a number is worse than any."""
  return np.inf if np.isnan(difference) else difference


# --- Differences -----------------------------------------------------------


def difference(ours: Any, theirs: Any) -> float:
  """Largest absolute difference of two arrays or trees.

  Arrays of different shapes are infinitely different: nothing is broadcast.
  So are empty ones: nothing was compared.
  """

  def one(a: Any, b: Any) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or not a.size:
      return np.inf
    return float(np.abs(a - b).max())

  # numpy's maximum of NaN and a number is NaN.
  return float(np.max(jax.tree.leaves(jax.tree.map(one, ours, theirs))))


def relative(ours: Any, theirs: Any, floor: float = 0.0) -> float:
  """Largest difference over the value that is expected there.

  Args:
    ours: array.
    theirs: array of the same shape.
    floor: values smaller than this share of the largest count as this share:
      those where both sides are the rounding of a much larger number.
  """
  ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
  if ours.shape != theirs.shape:
    return np.inf
  size = np.abs(theirs)
  size = np.maximum(size, floor * size.max())
  # Where zero is expected, only zero is no difference.
  size = np.where(size > 0, size, np.finfo(np.float64).tiny)
  return float(np.max(np.abs(ours - theirs) / size))


def tensor_differences(
  ours: Arrays, theirs: Arrays, *, scaled: bool = False
) -> tuple[dict[str, float], dict[str, float]]:
  """Differences of each tensor of `theirs`, the key biases apart.

  The gradient of the key bias, the middle third of `qkv.bias`, is zero in
  exact arithmetic, and what it is in float32 is rounding: it has no scale,
  and Adam makes steps of it.

  Args:
    ours: tensors by the reference's names.
    theirs: some of them.
    scaled: over the largest value of the tensor.

  Returns:
    Differences, and absolute differences of the key biases.
  """
  differences, key_biases = {}, {}
  for name, expected in theirs.items():
    guess, expected = np.asarray(ours[name]), np.asarray(expected)
    if name.endswith('attn.qkv.bias') and expected.shape == guess.shape != ():
      guess, expected = (np.reshape(x, (3, -1)) for x in (guess, expected))
      key_biases[name] = difference(guess[1], expected[1])
      guess, expected = guess[::2], expected[::2]
    scale = float(np.abs(expected).max()) if scaled else 1.0
    differences[name] = difference(guess, expected) / (scale or 1.0)
  return differences, key_biases


def different_bits(ours: Arrays, theirs: Arrays) -> float:
  """How many tensors are not bit for bit the same, or are on one side only."""
  return len(ours.keys() ^ theirs.keys()) + sum(
    ours[name].tobytes() != np.asarray(theirs[name], np.float32).tobytes()
    for name in ours.keys() & theirs.keys()
  )


def absent(names: Iterable[str], present: Iterable[str]) -> list[str]:
  """The names that are not present."""
  present = set(present)
  return [name for name in names if name not in present]
