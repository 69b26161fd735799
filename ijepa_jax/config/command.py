"""The command line of the training command, on absl flags.

Every field of the table becomes a flag `--config.FIELD`. The flags live in a
`FlagValues` of their own, so a process may parse any number of times. (The
flags of `ml_collections.config_flags` are not used: they let a missing file
pass until the config is first read, and end a wrong field or value in a
traceback.)
"""

import difflib
import pathlib
import runpy
import traceback
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict

from ijepa_jax import errors
from ijepa_jax.config import fields, validate
from ijepa_jax.config.field import closest

_USAGE = """\
Trains I-JEPA, or goes on where the run in DIR stopped.

usage: python -m ijepa_jax.main --config=configs/NAME.py[:paper]
           [--workdir=DIR] [--config.FIELD=VALUE ...]

  --config=FILE.py[:VARIANT]
      A config, see configs/. The variant `paper` follows the paper where the
      authors' code does otherwise.
  --workdir=DIR
      Where checkpoints, metrics and pictures go. Default: runs/NAME.

Fields, their defaults before the config file, and their sources ([3], [A.1]:
sections of the paper; [ref]: the authors' code and released configs):
"""

# What a mistake in a config file raises; the file may hold any Python.
_MISTAKES = (
  ArithmeticError,
  AssertionError,
  AttributeError,
  ImportError,
  LookupError,
  NameError,
  OSError,
  RuntimeError,
  SyntaxError,
  TypeError,
  ValueError,
)


def parse(argv: Sequence[str]) -> tuple[ConfigDict, pathlib.Path]:
  """Reads the command line.

  Args:
    argv: the name of the program and its arguments, as `sys.argv`.

  Returns:
    The validated, resolved and locked config, and the workdir.

  Raises:
    UserError: anything is wrong with it.
    SystemExit: help was asked for and printed; code 0.
  """
  values = _define_flags()
  try:
    _, *unexpected = values(argv)
  except flags.UnrecognizedFlagError as error:
    raise _unknown_flag(error.flagname) from error
  except (flags.Error, ValueError) as error:
    raise errors.UserError(_one_line(error)) from error
  if values['help'].value:
    print(_USAGE + fields.describe())
    raise SystemExit(0)
  if unexpected:
    raise errors.UserError(
      f"unexpected argument '{unexpected[0]}'; expected --config=FILE.py, "
      '--workdir=DIR or --config.FIELD=VALUE'
    )

  file, _, variant = (values['config'].value or '').partition(':')
  config = _load(file, variant)
  for name, field in fields.FIELDS.items():
    text = values[f'config.{name}'].value
    if text is not None:
      fields.assign(config, name, field.parse(text))
  validate.validate(config)

  # Grain reads absl's global flags, which nobody else parses here.
  flags.FLAGS.mark_as_parsed()
  name = pathlib.Path(file).stem + (f'_{variant}' if variant else '')
  workdir = pathlib.Path(values['workdir'].value or f'runs/{name}')
  return validate.resolve(config).lock(), workdir


def _define_flags() -> flags.FlagValues:
  """All flags as text; bools as such, for `--config.X` and `--noconfig.X`."""
  values = flags.FlagValues()
  flags.DEFINE_bool('help', False, '', values, short_name='h')
  for name in ('config', 'workdir'):
    flags.DEFINE_string(name, None, '', values)
  for name, field in fields.FIELDS.items():
    flags.DEFINE_string(f'config.{name}', None, field.doc, values)
    values[f'config.{name}'].boolean = field.kind is bool
  return values


def _unknown_flag(name: str) -> errors.UserError:
  if name.startswith('config.'):
    fields.find(name.removeprefix('config.'))  # raises
  known = ['config', 'workdir', 'help']
  known += [f'config.{field}' for field in fields.FIELDS]
  return errors.UserError(
    f'unknown flag --{name}; nearest: --{closest(name, known)}'
  )


def _load(file: str, variant: str) -> ConfigDict:
  """Runs `get_config(variant)` of a config file, and checks what it gave."""
  if not pathlib.Path(file).is_file():
    raise _no_such_file(file)
  try:
    get_config = runpy.run_path(file).get('get_config')
    if get_config is None:
      raise errors.UserError(f'{file}: expected a function get_config()')
    config = get_config(variant) if variant else get_config()
  except _MISTAKES as error:
    raise errors.UserError(
      f'{_location(error, file)}: {type(error).__name__}: {_one_line(error)}'
    ) from error
  if not isinstance(config, ConfigDict):
    raise errors.UserError(
      f'{file}: get_config() returned {type(config).__name__}, expected the '
      'ConfigDict of fields.defaults()'
    )
  validate.check_names(config)
  return config


def _no_such_file(file: str) -> errors.UserError:
  """An error that names the configs there are, the most similar ones first."""
  path = pathlib.Path(file or 'configs/NAME.py')
  existing = {
    other.stem: str(other)
    for folder in (pathlib.Path('configs'), path.parent)
    for other in sorted(folder.glob('*.py'))
  }
  if not file:
    return errors.UserError(
      '--config is missing; expected --config=FILE.py, one of '
      + (', '.join(existing.values()) or 'configs/vith14.py')
    )
  near = difflib.get_close_matches(path.stem, existing, n=3, cutoff=0.0)
  return errors.UserError(
    f'--config={file}: no such file; nearest: '
    + (', '.join(existing[stem] for stem in near) or 'none here')
  )


def _location(error: BaseException, file: str) -> str:
  """The file and its line where `error` came from."""
  if isinstance(error, SyntaxError):
    return f'{file}, line {error.lineno}'
  lines = [
    frame.lineno
    for frame in traceback.extract_tb(error.__traceback__)
    if frame.filename == file
  ]
  return f'{file}, line {lines[-1]}' if lines else file


def _one_line(error: BaseException) -> str:
  """The text of an error without line breaks."""
  if error.args and isinstance(error.args[0], KeyError):
    error = error.args[0]  # how ConfigDict reports an unknown section
  # The text of a KeyError is the repr of its argument.
  keyed = isinstance(error, KeyError) and error.args
  text = error.args[0] if keyed else error
  return ' '.join(str(text).split())
