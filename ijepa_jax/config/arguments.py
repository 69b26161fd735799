"""Command-line arguments of the commands that use argparse."""

import argparse
from collections.abc import Callable, Sequence
from typing import NoReturn

from ijepa_jax import errors
from ijepa_jax.config.field import closest


class Parser(argparse.ArgumentParser):
  """Ends in one line, like every command here."""

  def error(self, message: str) -> NoReturn:
    raise errors.UserError(message)


def parse_with_config(
  parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
  """A command's own options, and the arguments that are its config's.

  Raises:
    UserError: an option is neither.
  """
  args, config_arguments = parser.parse_known_args(argv)
  known = ['config', 'help', *vars(args)]
  for argument in config_arguments:
    name = argument.removeprefix('--').removeprefix('no').partition('=')[0]
    ours = not argument.startswith('--') or name.split('.')[0] == 'config'
    if not ours:
      raise errors.UserError(
        f'unknown flag --{name}; nearest: --{closest(name, known)}'
      )
  return args, config_arguments


def count(text: str) -> int:
  """A whole number, 0 or more; errors as of `positive`."""
  number = int(text)
  if number < 0:
    raise argparse.ArgumentTypeError(f'{text} is below 0')
  return number


def positive(text: str) -> int:
  """A whole number of at least 1.

  Raises:
    ArgumentTypeError: it is smaller; argparse makes one line of it.
    ValueError: it is no whole number; likewise.
  """
  number = int(text)
  if number < 1:
    raise argparse.ArgumentTypeError(f'{text} is not at least 1')
  return number


def numbers(text: str) -> tuple[float, ...]:
  """Numbers of at least 0 with commas between.

  Raises:
    ArgumentTypeError: there are others; argparse makes one line of it.
    ValueError: they are no numbers; likewise.
  """
  found = tuple(float(part) for part in text.split(','))
  if not all(number >= 0 for number in found):
    raise argparse.ArgumentTypeError(
      f'{text}: expected numbers of at least 0 with commas between'
    )
  return found


def share(text: str) -> float:
  """A number from 0 to 1.

  Raises:
    ArgumentTypeError: it is another; argparse makes one line of it.
    ValueError: it is no number; likewise.
  """
  number = float(text)
  if not 0 <= number <= 1:
    raise argparse.ArgumentTypeError(f'{text}: expected a number from 0 to 1')
  return number


def choice(*names: str) -> Callable[[str], str]:
  """One of some words; argparse makes one line of its ArgumentTypeError."""

  def parse(text: str) -> str:
    if text not in names:
      raise argparse.ArgumentTypeError(
        f'{text!r} is not one of {", ".join(names)}'
      )
    return text

  return parse


def choices(*names: str) -> Callable[[str], tuple[str, ...]]:
  """Some of some words, with commas between; errors as of `choice`."""
  parse = choice(*names)
  return lambda text: tuple(map(parse, text.split(',')))
