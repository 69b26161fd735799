"""Correctness and speed on a GPU, in one call of under 10 minutes.

  python benchmarks/gpu_check.py --json gpu.json [--reference DIR]

checks loss, gradients, attention and determinism on the GPU, then measures the
training step, the most important figures first, and prints what was checked,
what was measured, what was skipped because time ran out, and a table of the
targets last. What was skipped comes with more `--minutes`, or with `--only`:

  python benchmarks/gpu_check.py --only 'matrix rate|step vith14' --minutes 20

`--reference DIR` also runs the authors' code, in their folder DIR, on the same
card; that takes `--minutes 14`. `--smoke` runs every path at tiny sizes on a
CPU. Each group of tasks is a process of its own, so that one that crashes,
hangs or fills the memory takes nothing else with it, and that each has its own
peak of memory.

Exit code 0: nothing failed, 1: a check failed or a task broke, 2: bad input.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

import gpu_plan
import gpu_report
import gpu_speed
import gpu_tasks
from gpu_tasks import Process, Row

from ijepa_jax import errors
from ijepa_jax.benchmark import record, report

# Importing JAX and waking up the GPU, in seconds.
_PROCESS = 8.0
# Left for the tables at the end.
_MARGIN = 5.0


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command line."""
  args = _parser().parse_args(argv)
  with errors.exit_cleanly():
    _require(args)
    processes = gpu_plan.plan(
      smoke=args.smoke,
      only=args.only,
      reference=args.reference,
      reference_python=args.reference_python,
    )
    if args.list:
      for process in processes:
        for task in process.tasks:
          print(f'{task.seconds:4.0f} s  {task.name}')
      return
    if args.child is not None:
      _child(processes[args.child], args.rows, args.deadline)
      return
    rows = _parent(processes, args)
    names = [task.name for process in processes for task in process.tasks]
    print(gpu_report.tables(rows, names), flush=True)
    if args.json:
      record.write(args.json, _record(rows, names, args))
    failed = [row.name for row in rows.values() if row.status == gpu_tasks.FAIL]
    if failed:
      print(f'failed: {"; ".join(failed)}', file=sys.stderr)
      raise SystemExit(1)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add('--json', type=pathlib.Path, metavar='FILE', help='write all of it')
  add('--minutes', type=float, default=9.0, help='in all; default 9')
  add('--only', default='', metavar='REGEX', help='names of tasks')
  add('--reference', type=pathlib.Path, metavar='DIR', help="authors' code")
  add(
    '--reference-python',
    default=sys.executable,
    metavar='FILE',
    help='the Python that has PyTorch, if another one',
  )
  add('--smoke', action='store_true', help='tiny sizes, on a CPU')
  add('--list', action='store_true', help='name the tasks and stop')
  # How it calls itself.
  add('--child', type=int, help=argparse.SUPPRESS)
  add('--rows', type=pathlib.Path, help=argparse.SUPPRESS)
  add('--deadline', type=float, help=argparse.SUPPRESS)
  return parser


def _require(args: argparse.Namespace) -> None:
  """Refuses bad arguments before any work is done."""
  try:
    re.compile(args.only)
  except re.error as error:
    raise errors.UserError(f'--only={args.only}: {error}') from error
  if args.minutes <= 0:
    raise errors.UserError(f'--minutes={args.minutes:g}: expected more than 0')
  if args.reference and not args.reference.is_dir():
    raise errors.UserError(f'--reference={args.reference}: no such folder')
  if args.json and not args.json.absolute().parent.is_dir():
    raise errors.UserError(f'--json={args.json}: no such folder')


# --- The parent, which never touches the GPU -------------------------------


def _parent(
  processes: Sequence[Process], args: argparse.Namespace
) -> dict[str, Row]:
  """Runs the processes one after the other while there is time."""
  deadline = time.time() + 60 * args.minutes - _MARGIN
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / 'rows.jsonl'
    file.touch()
    for number, process in enumerate(processes):
      device = _read(file).get('device')
      if device and device.status == gpu_tasks.FAIL:
        status, note = gpu_tasks.SKIPPED, 'there is no GPU'
      elif short := _shortage(_PROCESS + process.tasks[0].seconds, deadline):
        status, note = gpu_tasks.SKIPPED, short
      else:
        status, note = _run(number, process, file, deadline, args)
      rows = _read(file)
      for task in process.tasks:
        if task.name not in rows:
          _append(file, Row(task.name, status, note))
    return _read(file)


def _run(
  number: int,
  process: Process,
  file: pathlib.Path,
  deadline: float,
  args: argparse.Namespace,
) -> tuple[str, str]:
  """Runs a process; what to say of its tasks that have no row after that."""
  command = [sys.executable, __file__, '--child', str(number)]
  command += ['--rows', str(file), '--deadline', str(deadline)]
  command += ['--only', args.only, '--reference-python', args.reference_python]
  command += ['--smoke'] if args.smoke else []
  if args.reference:
    command += ['--reference', str(args.reference.absolute())]
  # A session of its own, so that it ends with all that it started.
  child = subprocess.Popen(
    command,
    env=_environment(process, file.parent, args.smoke),
    stdout=2,  # stderr: stdout is for the tables
    start_new_session=True,
  )
  try:
    code = child.wait(timeout=max(1.0, deadline - time.time()))
  except subprocess.TimeoutExpired:
    return gpu_tasks.SKIPPED, 'stopped, because the time was up'
  finally:
    if child.poll() is None:
      os.killpg(child.pid, signal.SIGKILL)
      child.wait()
  return gpu_tasks.FAIL, f'its process ended with exit code {code}, see above'


def _environment(
  process: Process, folder: pathlib.Path, smoke: bool
) -> dict[str, str]:
  """Variables for a process, over those that the user has set."""
  ours = {
    # Comparisons with the CPU need both. Without a GPU this is an error.
    'JAX_PLATFORMS': 'cpu' if smoke else 'cuda,cpu',
    'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {process.flags}'.strip(),
    # The targets are for one device.
    'CUDA_VISIBLE_DEVICES': os.environ.get('CUDA_VISIBLE_DEVICES', '0').split(
      ','
    )[0],
    gpu_speed.STARTED: str(time.time()),
    **process.environment,
  }
  theirs = {}
  if 'XLA_PYTHON_CLIENT_MEM_FRACTION' not in os.environ:
    theirs['XLA_CLIENT_MEM_FRACTION'] = '0.92'  # of 75 % it would say: full
  cache = {'JAX_COMPILATION_CACHE_DIR': str(folder / 'cache')}
  # A start is timed with an empty cache; a smoke test times nothing.
  (theirs if smoke else ours).update(cache)
  return theirs | os.environ | ours


def _shortage(seconds: float, deadline: float) -> str:
  """Words for a task that does not fit, empty for one that does."""
  left = deadline - time.time()
  if seconds <= left:
    return ''
  return f'no time: takes about {seconds:.0f} s, {max(0.0, left):.0f} s left'


def _record(
  rows: Mapping[str, Row], names: Sequence[str], args: argparse.Namespace
) -> dict[str, object]:
  """All of it for the JSON file, the form of `ijepa_jax.benchmark`'s."""
  device = dict(rows['device'].values)
  command = ['python', 'benchmarks/gpu_check.py', *sys.argv[1:]]
  return {
    'command': shlex.join(command),
    'machine': device.pop('machine', None),
    'versions': device.pop('versions', None),
    'config': None,
    'results': {
      'gpu_check': {
        'smoke': args.smoke,
        'minutes': args.minutes,
        **device,
        'targets': gpu_report.targets(rows),
        'rows': [dataclasses.asdict(rows[name]) for name in names],
      }
    },
  }


# --- A child ---------------------------------------------------------------


def _child(process: Process, file: pathlib.Path, deadline: float) -> None:
  """Runs the tasks of a process; each leaves a row before the next begins."""
  for task in process.tasks:
    if short := _shortage(task.seconds, deadline):
      row = Row(task.name, gpu_tasks.SKIPPED, short)
    else:
      row = gpu_tasks.perform(task, _read(file))
    _append(file, row)
    report.say(f'{row.seconds:5.1f} s  {row.name}: {row.status}, {row.note}')


def _append(file: pathlib.Path, row: Row) -> None:
  with file.open('a') as stream:
    stream.write(json.dumps(dataclasses.asdict(row)) + '\n')


def _read(file: pathlib.Path) -> dict[str, Row]:
  """Rows by name; of a process that was killed the last line may be torn."""
  rows = {}
  for line in file.read_text().splitlines():
    with contextlib.suppress(json.JSONDecodeError):
      row = Row(**json.loads(line))
      rows[row.name] = row
  return rows


if __name__ == '__main__':
  main()
