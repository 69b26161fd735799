"""Values of command-line arguments, for the commands that use argparse."""

import argparse


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
