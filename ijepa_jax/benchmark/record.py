"""The one form of a result file: what was run, where, on what, what came out.

`{"command", "machine", "versions", "config", "results": {KIND: {...}}}`.
"""

import datetime
import json
import os
import pathlib
import platform
import shlex
import statistics
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax

import ijepa_jax
from ijepa_jax import errors

_PACKAGES = ('jax', 'jaxlib', 'flax', 'numpy', 'pillow', 'grain')
# Of a measured number; a shared machine does not even give three.
_DIGITS = 6


def spread(values: Sequence[float]) -> dict[str, Any]:
  """Median, quartiles and number of some measurements, at least one."""
  low, median, high = (
    statistics.quantiles(values, n=4) if len(values) > 1 else 3 * [values[0]]
  )
  return {'median': median, 'quartiles': [low, high], 'count': len(values)}


def make(
  arguments: Sequence[str],
  config: Mapping[str, Any] | None,
  results: Mapping[str, Any],
) -> dict[str, Any]:
  """A record of what was measured, ready for JSON.

  Args:
    arguments: of `python -m ijepa_jax.benchmark`.
    config: nested; None where no config was asked for.
    results: by kind.
  """
  command = ['python', '-m', 'ijepa_jax.benchmark', *arguments]
  return {
    'command': shlex.join(command),
    'machine': machine(),
    'versions': versions(),
    'config': config,
    'results': _rounded(results),
  }


def write(path: pathlib.Path, record: Mapping[str, Any]) -> None:
  """Writes a record for people and programs.

  Raises:
    UserError: the file cannot be written.
  """
  try:
    path.write_text(json.dumps(record, indent=2) + '\n')
  except OSError as error:
    raise errors.UserError(f'--json={path}: {error.strerror}') from error


def machine() -> dict[str, Any]:
  """The computer, how busy it is, and the date."""
  devices = jax.devices()
  return {
    'cpu': _cpu(),
    'cores': len(os.sched_getaffinity(0)),  # those that we may use
    'memory_bytes': os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'),
    'load_average': round(os.getloadavg()[0], 2),
    'devices': len(devices),
    'device_kind': devices[0].device_kind,
    'system': f'{platform.system()} {platform.machine()}',
    # An allocator, most likely: without it, the figures are others.
    'preloaded': [
      pathlib.Path(file).name.partition('.')[0]
      for file in os.environ.get('LD_PRELOAD', '').split(':')
      if file
    ],
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='minutes'),
  }


def versions() -> dict[str, str]:
  """Versions of what determines speed."""
  return {
    'ijepa_jax': ijepa_jax.__version__,
    'python': platform.python_version(),
    **{name: metadata.version(name) for name in _PACKAGES},
  }


def _cpu() -> str:
  """The processor's name as Linux has it."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    lines = []
  names = [line for line in lines if line.startswith('model name')]
  return names[0].partition(': ')[2] if names else platform.processor()


def _rounded(value: Any) -> Any:
  """Floats inside of lists and dicts with `_DIGITS` digits."""
  if isinstance(value, float):
    return float(f'{value:.{_DIGITS}g}')
  if isinstance(value, Mapping):
    return {name: _rounded(inner) for name, inner in value.items()}
  if isinstance(value, list | tuple):
    return [_rounded(inner) for inner in value]
  return value
