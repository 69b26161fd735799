"""What a config field is: its type, what it allows, how it is read."""

import ast
import dataclasses
import difflib
import fnmatch
from collections.abc import Collection
from typing import Any

from ijepa_jax import errors


@dataclasses.dataclass(frozen=True)
class Field:
  """One config field.

  Attributes:
    name: dotted path, such as `'optim.lr'`.
    default: its value unless a config says otherwise; None: not set, which
      then has the meaning that `doc` gives.
    allowed: an interval such as `'(0, 1]'` for numbers and for both entries
      of a pair, names (shell patterns) for strings, None for any value of the
      right type.
    doc: meaning, unit and source, in one line.
    optional: type of a field whose default is None; it may be unset again.
    resume: whether a resumed run may change it.
  """

  name: str
  default: Any
  allowed: str | tuple[str, ...] | None
  doc: str
  optional: type | None = None
  resume: bool = False

  @property
  def kind(self) -> type:
    """Type of the value: bool, int, float, str, or tuple for a pair."""
    return self.optional or type(self.default)

  @property
  def expected(self) -> str:
    """What a value must be, in words."""
    if isinstance(self.allowed, tuple):
      return ' | '.join(self.allowed)
    words = {
      bool: 'true or false',
      int: 'a whole number',
      float: 'a number',
      str: 'text',
      tuple: 'a pair (low, high)',
    }[self.kind]
    return f'{words} in {self.allowed}' if self.allowed else words

  def parse(self, text: str) -> Any:
    """Value of a command-line argument; 'none' unsets an optional field.

    Raises:
      UserError: `text` is not of the field's type or not allowed.
    """
    value: Any = text
    try:
      if self.optional and text.lower() == 'none':
        value = None
      elif self.kind is bool:
        value = {'true': True, 'false': False}[text.lower()]
      elif self.kind is tuple:
        value = tuple(float(number) for number in ast.literal_eval(text))
      else:
        value = self.kind(text)
    except (KeyError, SyntaxError, TypeError, ValueError):
      pass  # still the text, which is of the wrong type: `check` says so
    self.check(value)
    return value

  def check(self, value: Any) -> None:
    """Raises a UserError unless `value` is of the right type and allowed."""
    if self.optional and value is None:
      return
    if type(value) is self.kind and self._allows(value):
      return
    nearest = self._nearest(value)
    raise errors.UserError(
      f'{self.name}={value!r}: expected {self.expected}'
      + (f'; nearest: {nearest}' if nearest is not None else '')
    )

  def _allows(self, value: Any) -> bool:
    allowed = self.allowed
    if allowed is None:
      return True
    if isinstance(allowed, tuple):
      return any(fnmatch.fnmatchcase(value, name) for name in allowed)
    if self.kind is not tuple:
      return _is_in(value, allowed)
    return (
      len(value) == 2
      and all(type(number) in (int, float) for number in value)
      and all(_is_in(number, allowed) for number in value)
      and value[0] <= value[1]
    )

  def _nearest(self, value: Any) -> Any:
    """The nearest allowed value; None where there is no such thing."""
    if isinstance(self.allowed, tuple):
      return closest(str(value), self.allowed)
    if isinstance(self.allowed, str) and type(value) in (int, float):
      low, high = _ends(self.allowed)
      bound = min(max(value, low), high)
      if self.kind is not tuple and _is_in(bound, self.allowed):
        return self.kind(bound)
    return None


def closest(name: str, names: Collection[str]) -> str:
  """The most similar of `names`."""
  return difflib.get_close_matches(name, list(names), n=1, cutoff=0.0)[0]


def _is_in(value: float, interval: str) -> bool:
  low, high = _ends(interval)
  above = value >= low if interval.startswith('[') else value > low
  below = value <= high if interval.endswith(']') else value < high
  return above and below


def _ends(interval: str) -> tuple[float, float]:
  low, high = interval[1:-1].split(',')
  return float(low), float(high)
