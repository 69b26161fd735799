"""results.json and results.md: what was measured, and all to repeat it."""

import importlib.metadata
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from ijepa_jax import atomic, errors
from ijepa_jax.evaluation import tables
from ijepa_jax.evaluation.tasks.result import Result

FORMAT = 1
JSON_NAME = 'results.json'
MARKDOWN_NAME = 'results.md'

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'pillow')
# What results of different commands must share to stand in one file.
_SAME = ('checkpoint', 'data', 'seed')
# As the user typed them: hashes tell whether it is another.
_TYPED = ('path', 'source')


def versions() -> dict[str, str]:
  """Of Python and of what computes."""
  found = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return {'python': sys.version.split()[0], **found}


def read_results(file: str) -> dict[str, Any] | None:
  """What a results.json says, with `Result`s as dicts; None if there is none.

  Raises:
    UserError: it cannot be read as one.
  """
  try:
    with open(file, encoding='utf-8') as stream:
      held = json.load(stream)
  except FileNotFoundError:
    return None
  except (OSError, ValueError) as error:
    raise errors.UserError(f'{file} cannot be read: {error}') from error
  if not isinstance(held, dict) or held.get('format') != FORMAT:
    raise errors.UserError(
      f'{file} is not a results file of format {FORMAT}; move it, or choose '
      'another --out'
    )
  return held


def require_mergeable(folder: str, description: dict[str, Any]) -> None:
  """Raises a UserError where `folder` has results of something else."""
  file = os.path.join(folder, JSON_NAME)
  held = read_results(file)
  if held is None:
    return
  for key in _SAME:
    ours, theirs = (_identity(each.get(key)) for each in (description, held))
    if ours != theirs:
      raise errors.UserError(
        f'{file} has results of another {key}{_difference(ours, theirs)}; '
        'choose another --out, or move it'
      )


def make(folder: str) -> None:
  """Makes a folder for results.

  Raises:
    StorageError: it cannot be made.
  """
  try:
    os.makedirs(folder, exist_ok=True)
  except OSError as error:
    raise errors.StorageError(
      f'--out: {folder} cannot be made: {error.strerror}'
    ) from error


def write(
  folder: str,
  description: dict[str, Any],
  survey: dict[str, Any],
  commands: dict[str, dict[str, Any]],
  results: Sequence[Result],
) -> None:
  """Adds results to a folder's; a task measured again replaces its own.

  Args:
    folder: as of `make`.
    description: checkpoint, data, seed, as of `require_mergeable`.
    survey: what was found in the images, as `Subject.survey` has it.
    commands: task -> command, options, versions and seconds of these results.
    results: of those tasks.

  Raises:
    UserError: it has results of something else.
    StorageError: it cannot be written.
  """
  require_mergeable(folder, description)
  before = read_results(os.path.join(folder, JSON_NAME))
  held = before or {'tasks': {}, 'results': []}
  kept = [
    Result(**result)
    for result in held['results']
    if result['task'] not in commands
  ]
  everything = kept + list(results)
  content = {
    'format': FORMAT,
    **description,
    **survey,
    'tasks': held['tasks'] | commands,
    'results': [result.to_dict() for result in everything],
  }
  path = pathlib.Path(folder)
  atomic.write_text(path / JSON_NAME, json.dumps(content, indent=1) + '\n')
  atomic.write_text(path / MARKDOWN_NAME, _markdown(content, everything))


def _markdown(content: dict[str, Any], results: Sequence[Result]) -> str:
  checkpoint, data = content['checkpoint'], content['data']
  images = content['images']
  commands = sorted({task['command'] for task in content['tasks'].values()})
  return '\n'.join(
    [
      '# Evaluation',
      '',
      f'- encoder: `{checkpoint["path"]}`, {checkpoint["which"]}'
      + (f', step {checkpoint["step"]:,}' if checkpoint['step'] else ''),
      f'- data: `{data["source"]}`, {images["train"]["used"]:,} images of '
      f'{data["train"]["split"]} to fit, {images["test"]["used"]:,} of '
      f'{data["test"]["split"]} to measure',
      f'- seed {content["seed"]}',
      '',
      tables.markdown(results),
      '',
      'Intervals are of the test images alone, not of seeds; of lowshot with '
      'several seeds, of their mean on the same test images. init: the same '
      'protocol on this encoder before training; pixels: on raw pixels.',
      '',
      '```sh',
      *commands,
      '```',
      '',
    ]
  )


def _identity(value: Any) -> Any:
  """As JSON has it, without what the user typed."""
  value = json.loads(json.dumps(value))
  if not isinstance(value, dict):
    return value
  return {name: held for name, held in value.items() if name not in _TYPED}


def _difference(ours: Any, theirs: Any) -> str:
  """The first field that differs."""
  if not isinstance(ours, dict) or not isinstance(theirs, dict):
    return f' ({theirs})'
  differences = (
    f' ({name}: {theirs.get(name)!r}, now {value!r})'
    for name, value in ours.items()
    if theirs.get(name) != value
  )
  return next(differences, '')
