"""What a config.json, or a checkpoint, says of its weights.

Others wrote it, so anything may be anywhere: each value is checked where it is
asked for, and one that cannot be is a line with the file and the key.
"""

import dataclasses
import json
import os
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from ijepa_jax import errors


@dataclasses.dataclass(frozen=True)
class Kind:
  """Values that a key may have.

  Attributes:
    words: what they are.
    has: whether a value is one of them.
  """

  words: str
  has: Callable[[Any], bool]


# Not `isinstance`: True is an int.
SIZE = Kind('a whole number above 0', lambda x: type(x) is int and x > 0)
COUNT = Kind('a whole number, 0 or more', lambda x: type(x) is int and x >= 0)
FLAG = Kind('true or false', lambda x: type(x) is bool)
SHARE = Kind(
  'a number above 0 and at most 1',
  lambda x: type(x) in (int, float) and 0 < x <= 1,
)
NUMBER = Kind(
  'a number above 0', lambda x: type(x) in (int, float) and 0 < x < float('inf')
)


@dataclasses.dataclass(frozen=True)
class Described:
  """A JSON object, or a section of one.

  Attributes:
    path: the file, for messages.
    values: by key.
    prefix: the keys that lead here, such as `'predictor.'`.
  """

  path: str
  values: Mapping[str, Any]
  prefix: str = ''

  def section(self, key: str) -> 'Described':
    """The object under a key; empty if there is none, or null.

    Raises:
      UserError: there is something else.
    """
    value = self.values.get(key)
    if value is None:
      value = {}
    if not isinstance(value, Mapping):
      raise self.wrong(key, 'an object')
    return Described(self.path, value, f'{self.prefix}{key}.')

  def get(self, key: str, kind: Kind) -> Any:
    """The value under a key, or None if there is no such key.

    Raises:
      UserError: it is of another kind.
    """
    if key not in self.values:
      return None
    if not kind.has(self.values[key]):
      raise self.wrong(key, kind.words)
    return self.values[key]

  def require(self, key: str, kind: Kind) -> Any:
    """The value under a key.

    Raises:
      UserError: it is of another kind, or there is none.
    """
    if key not in self.values:
      raise self._missing(key)
    return self.get(key, kind)

  def agree(self, sizes: Mapping[str, int], *, whole: bool) -> None:
    """Refuses a description of other weights.

    Args:
      sizes: what the tensors have, by key; a square may be said by both sides.
      whole: whether every key must be there.

    Raises:
      UserError: a value is another, or missing.
    """
    for key, size in sizes.items():
      if key not in self.values:
        if whole:
          raise self._missing(key)
      elif self.values[key] not in (size, [size, size]):
        raise self.wrong(key, f'{size} as its tensors have')

  def name(self, key: str) -> str:
    """File and key, for messages."""
    return f'{self.path}: {self.prefix}{key}'

  def wrong(self, key: str, expected: str) -> errors.UserError:
    """The error of a value."""
    return errors.UserError(
      f'{self.name(key)} is {_shown(self.values[key])}, expected {expected}'
    )

  def _missing(self, key: str) -> errors.UserError:
    return errors.UserError(f'{self.name(key)} is missing')


def read(path: str) -> Described:
  """Reads a JSON file; one that does not exist says nothing.

  Raises:
    UserError: it cannot be read, or is no JSON object.
  """
  if not os.path.lexists(path):
    return Described(path, {})
  try:
    with open(path, encoding='utf-8') as file:
      values = json.load(file)
  except OSError as error:
    raise errors.UserError(
      f'{path} cannot be read: {error.strerror}'
    ) from error
  except (ValueError, RecursionError) as error:
    raise errors.UserError(f'{path} is no JSON: {error}') from error
  return top(path, values)


def top(path: str, values: Any) -> Described:
  """What a whole file says.

  Raises:
    UserError: it is no JSON object.
  """
  if not isinstance(values, Mapping):
    raise errors.UserError(f'{path} is {_shown(values)}, expected an object')
  return Described(path, values)


def read_mark(mark: Described) -> dict[str, Any]:
  """The inverse of `Weights.mark`.

  Args:
    mark: the section `ijepa_jax`; what it does not say is left at its default.

  Returns:
    Arguments of `Weights`.

  Raises:
    UserError: a value is of another kind.
  """
  said = {
    'ours': mark.get('trained_here', FLAG),
    'crop': mark.get('crop', SHARE),
  }
  steps = {name: mark.get(name, COUNT) for name in ('step', 'epoch')}
  progress = {name: n for name, n in steps.items() if n is not None}
  return {name: x for name, x in said.items() if x is not None} | {
    'progress': progress
  }


def _shown(value: Any) -> str:
  """A value on one short line, as JSON spells it."""
  if isinstance(value, Mapping):
    return 'an object'
  if isinstance(value, list | tuple):
    return f'the list {reprlib.repr(list(value))}'
  text = json.dumps(value, ensure_ascii=False, default=reprlib.repr)
  return text if len(text) <= 40 else f'{text[:37]}...'
