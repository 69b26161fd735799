"""A second command timed in turn with ours: A B A B, and a ratio per pair.

Both see the same busy and quiet moments of the machine. Ours stays in this
process, compiled once; the other is run anew each time, and says its speed in
the last line of its output.
"""

import json
import shlex
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

from ijepa_jax import errors
from ijepa_jax.benchmark import record, report


def check(command: str) -> list[str]:
  """The words of a command whose program exists.

  Raises:
    UserError: it does not.
  """
  try:
    words = shlex.split(command)
  except ValueError as error:
    raise errors.UserError(f'--vs={command}: {error}') from error
  if not words or shutil.which(words[0]) is None:
    raise errors.UserError(
      f"--vs={command}: no such program: '{words[0] if words else ''}'"
    )
  return words


def measure(
  ours: Callable[[], float],
  command: str,
  *,
  pairs: int = 5,
  name: str = 'images_per_second',
) -> dict[str, Any]:
  """Times ours and the other in turn.

  Args:
    ours: runs for a while and gives a speed.
    command: split as a shell would, run without one. The last line it prints
      is a JSON object with `name`, or the record of
      `python -m ijepa_jax.benchmark step --json=-`.
    pairs: how often.
    name: of the speed.

  Returns:
    Ready for JSON: the `ratio` ours / theirs with median and quartiles, and
    every pair with all that the other said.

  Raises:
    UserError: the command fails, or says something else.
  """
  words = check(command)
  unit = name.replace('_', ' ')
  rows = []
  for pair in range(1, pairs + 1):
    mine = ours()
    report.say(f'pair {pair} of {pairs}: ours {report.number(mine)} {unit}')
    said = _run(words)
    theirs = _speed(said, name, command)
    report.say(
      f'pair {pair} of {pairs}: theirs {report.number(theirs)}, '
      f'ratio {mine / theirs:.2f}'
    )
    rows.append(
      {'ours': mine, 'theirs': theirs, 'ratio': mine / theirs, 'said': said}
    )
  return {
    'command': command,
    'unit': unit,
    'ratio': record.spread([row['ratio'] for row in rows]),
    'ours': record.spread([row['ours'] for row in rows]),
    'theirs': record.spread([row['theirs'] for row in rows]),
    'pairs': rows,
  }


def table(result: dict[str, Any]) -> str:
  """The result of `measure` for people."""
  rows = [('pair', 'ours', 'theirs', 'ratio')]
  rows += [
    (
      str(number),
      report.number(pair['ours']),
      report.number(pair['theirs']),
      f'{pair["ratio"]:.2f}',
    )
    for number, pair in enumerate(result['pairs'], 1)
  ]
  rows.append(
    (
      'median',
      report.number(result['ours']['median']),
      report.number(result['theirs']['median']),
      f'{result["ratio"]["median"]:.2f}',
    )
  )
  return (
    f'comparison, {result["unit"]}, theirs: {result["command"]}\n'
    f'{report.columns(rows)}'
  )


def _run(words: list[str]) -> Any:
  """Runs the command; what its last line says, None if that is no JSON."""
  done = subprocess.run(words, capture_output=True, text=True, check=False)
  if done.returncode:
    *_, last = ['no message', *done.stderr.strip().splitlines()]
    raise errors.UserError(
      f'--vs={shlex.join(words)}: ended with code {done.returncode}: {last}'
    )
  *_, last = ['', *done.stdout.strip().splitlines()]
  try:
    return json.loads(last)
  except ValueError:
    return None


def _speed(said: Any, name: str, command: str) -> float:
  """The speed in what a command said."""
  speed = None
  if isinstance(said, dict):
    speed = said.get(name)
    if {'results', 'command'} <= said.keys():  # a record of ours
      step = said['results'].get('step', {})
      speed = step.get(name, {}).get('median')
  if not isinstance(speed, int | float) or speed <= 0:
    raise errors.UserError(
      f'--vs={command}: expected as its last line a JSON object with '
      f'"{name}", a number above 0'
    )
  return float(speed)
