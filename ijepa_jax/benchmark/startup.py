"""How long a run takes to start, in processes of their own.

With the persistent compilation cache of JAX off, empty, and filled; its other
settings are JAX's own, as for a user who only names a folder for it.
"""

import collections
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from ijepa_jax import errors
from ijepa_jax.benchmark import first_step, report

CACHES = ('off', 'empty', 'filled')

# What users import: the package, what `load_encoder` and training need.
_IMPORTS = ('ijepa_jax', 'ijepa_jax.encoder', 'ijepa_jax.train')
# How many packages are named as the slowest to import.
_SLOWEST = 6


def measure(
  arguments: Sequence[str],
  *,
  caches: Sequence[str] = CACHES,
  repeats: int = 3,
) -> dict[str, Any]:
  """Starts a run in several ways.

  To be called before this process takes hold of an accelerator: those that it
  starts need it.

  Args:
    arguments: `--config=FILE` and overrides.
    caches: of `CACHES`; 'filled' follows 'empty'.
    repeats: of the imports, whose median counts.

  Returns:
    Ready for JSON: `import`, seconds of several imports and what the last one
    consists of; `first_step`, seconds per stage for each cache.

  Raises:
    UserError: the config does not run.
  """
  result: dict[str, Any] = {'import': {}, 'first_step': {}}
  for module in _IMPORTS:
    report.say(f'startup: import {module}')
    times = [_import_seconds(module) for _ in range(repeats)]
    result['import'][module] = statistics.median(times)
  result['import_slowest'] = _slowest(_IMPORTS[-1])
  with tempfile.TemporaryDirectory() as folder:
    for cache in caches:
      report.say(f'startup: first step, compilation cache {cache}')
      result['first_step'][cache] = _first_step(
        arguments, None if cache == 'off' else folder
      )
  return result


def table(result: dict[str, Any]) -> str:
  """The result of `measure` for people."""
  lines = ['startup: imports']
  rows = [(k, report.seconds(v)) for k, v in result['import'].items()]
  lines.append(report.columns(rows))
  slowest = ', '.join(
    f'{name} {report.seconds(value)}'
    for name, value in result['import_slowest'].items()
  )
  lines.append(f'  slowest in {_IMPORTS[-1]}: {slowest}')

  starts = result['first_step']
  lines.append('startup: seconds to the first step, by compilation cache')
  stages = list(dict.fromkeys(s for x in starts.values() for s in x['seconds']))
  table = [('', *starts)]
  for stage in stages:
    seconds = (start['seconds'][stage] for start in starts.values())
    table.append((stage, *(f'{value:.2f}' for value in seconds)))
  table.append(('total', *(f'{x["total"]:.2f}' for x in starts.values())))
  hits = ('yes' if x['step_from_cache'] else 'no' for x in starts.values())
  table.append(('step from the cache', *hits))
  lines.append(report.columns(table))
  return '\n'.join(lines)


def _first_step(arguments: Sequence[str], cache: str | None) -> dict[str, Any]:
  """Runs `first_step` with a folder for the cache, or without a cache."""
  environment = {
    **os.environ,
    'JAX_ENABLE_COMPILATION_CACHE': str(cache is not None).lower(),
    first_step.LAUNCHED: repr(time.time()),
  }
  environment.pop('JAX_COMPILATION_CACHE_DIR', None)
  environment.pop('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', None)
  if cache is not None:
    environment['JAX_COMPILATION_CACHE_DIR'] = cache
  done = subprocess.run(
    [sys.executable, '-m', first_step.__name__, *arguments],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  if done.returncode:
    *_, last = ['no message', *done.stderr.strip().splitlines()]
    raise errors.UserError(
      f'startup: the first step failed: {last.removeprefix("error: ")}'
    )
  result = json.loads(done.stdout.splitlines()[-1])
  result['total'] = sum(result['seconds'].values())
  return result


def _import_seconds(module: str) -> float:
  code = (
    'import time; start = time.perf_counter(); '
    f'import {module}; print(time.perf_counter() - start)'
  )
  return float(_python('-c', code).stdout)


def _slowest(module: str) -> dict[str, float]:
  """The packages that take most of an import, each without what it imports.

  Python says so of every module (and is slower for it).
  """
  found: dict[str, float] = collections.defaultdict(float)
  lines = _python('-X', 'importtime', '-c', f'import {module}').stderr
  for line in lines.splitlines():
    with contextlib.suppress(ValueError):  # the heading
      own, _, name = line.removeprefix('import time:').split('|')
      found[name.strip().partition('.')[0]] += int(own) / 1e6
  slowest = sorted(found, key=found.__getitem__, reverse=True)[:_SLOWEST]
  return {name: found[name] for name in slowest}


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
  return subprocess.run(
    [sys.executable, *arguments], capture_output=True, text=True, check=True
  )
