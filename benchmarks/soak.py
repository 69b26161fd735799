r"""A long run, watched: does anything grow that should not?

  python benchmarks/soak.py --folder=/tmp/soak --minutes=60 \
      --json=benchmarks/results/soak.json --plot=docs/soak.png

Trains a tiny model by the real command on a folder of images, with worker
processes, checkpoints, evaluations and TensorBoard, all far more often than in
earnest: an hour of it saves and evaluates as often as weeks of a large run.
From outside, it samples memory of the main process and of its workers, open
files, threads, shared memory and the size of the checkpoints. At the end it
stops the run by SIGTERM and repeats the steps since the last checkpoint in a
new process without workers: the same parameters, bit by bit, say that step and
data position never parted.

Linux only. As root, the run gets a /dev/shm of its own, so that what others
leave there is not counted. Exit code 1: something grew, or the bits differ.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
import soak_report
from orbax import checkpoint as ocp
from PIL import Image

_ROOT = pathlib.Path(__file__).parent.parent
_MAIN = [sys.executable, '-m', 'ijepa_jax.main']
_FIELDS = {
  'batch_size': 16,
  'total_steps': 4_000_000,
  'model.image_size': 24,
  'predictor.depth': 1,
  'mask.min_keep': 1,
  'mask.context_tokens': 14,
  'data.source': 'folder',
  'checkpoint.every': 500,
  'log.every': 50,
  'eval.every': 1000,
  'eval.split': 'none',
  'eval.train_examples': 64,
  'eval.test_examples': 32,
}
_PRIVATE_SHM = [
  *('unshare', '--mount', '--propagation', 'private'),
  *('sh', '-c', 'mount -t tmpfs tmpfs /dev/shm && exec "$@"', 'sh'),
]


def main() -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--folder', required=True, help='scratch, is filled')
  parser.add_argument('--minutes', type=float, default=60)
  parser.add_argument('--seconds', type=float, default=15, help='a sample')
  parser.add_argument('--workers', type=int, default=2, help='data workers')
  parser.add_argument('--json', required=True, help='write the samples here')
  parser.add_argument('--plot', required=True, help='draw them here, a PNG')
  args = parser.parse_args()
  folder = pathlib.Path(args.folder).resolve()
  _draw_images(folder / 'images')
  samples = _watch(folder, args.minutes, args.seconds, args.workers)
  stopped, replayed = _replay(folder)
  record = soak_report.judge(samples, stopped, replayed)
  pathlib.Path(args.json).write_text(json.dumps(record, indent=1) + '\n')
  soak_report.draw(record, pathlib.Path(args.plot))
  print(soak_report.table(record))
  sys.exit(not record['passed'])


def _draw_images(folder: pathlib.Path, count: int = 400) -> None:
  """Two folders of JPEG files of coarse coloured tiles."""
  rng = np.random.default_rng(0)
  for number in range(count):
    path = folder / 'train' / f'class{number % 2}' / f'{number:04}.jpg'
    path.parent.mkdir(parents=True, exist_ok=True)
    tiles = rng.integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(tiles).resize((64, 48)).save(path)


def _start(
  folder: pathlib.Path, name: str, prefix: Sequence[str] = (), **changes: object
) -> subprocess.Popen[bytes]:
  """Starts the training command; its output is in `NAME.log`."""
  fields = _FIELDS | {'data.path': folder / 'images'}
  fields |= {key.replace('__', '.'): value for key, value in changes.items()}
  command = [
    *(*prefix, *_MAIN, f'--workdir={folder / name}'),
    f'--config={_ROOT / "configs" / "quickstart.py"}',
    *(f'--config.{key}={value}' for key, value in fields.items()),
  ]
  paths = [str(_ROOT), os.environ.get('PYTHONPATH', '')]
  environment = os.environ | {'PYTHONPATH': os.pathsep.join(paths)}
  with open(folder / f'{name}.log', 'wb') as log:
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def _watch(
  folder: pathlib.Path, minutes: float, seconds: float, workers: int
) -> list[soak_report.Sample]:
  """Runs for that long, samples every so often, and stops the run."""
  private = os.geteuid() == 0 and shutil.which('unshare') is not None
  prefix = _PRIVATE_SHM if private else ()
  process = _start(folder, 'run', prefix, data__workers=workers)
  metrics = folder / 'run' / 'metrics.jsonl'
  _wait(process, lambda: metrics.exists() and _last_step(metrics) > 0)
  samples = []
  start = time.monotonic()
  try:
    while time.monotonic() < start + 60 * minutes:
      time.sleep(seconds)
      if process.poll() is not None:
        sys.exit(f'error: the run ended by itself, see {folder}/run.log')
      samples.append(_sample(process.pid, folder / 'run', start))
      print(f'\r{soak_report.line(samples[-1])}', end='', flush=True)
    print()
    process.send_signal(signal.SIGTERM)
    if process.wait(timeout=300) != 75:
      sys.exit(
        f'error: SIGTERM gave {process.returncode}, see {folder}/run.log'
      )
  finally:
    process.kill()
  return samples


def _sample(
  pid: int, workdir: pathlib.Path, start: float
) -> soak_report.Sample:
  """Looks at everything once."""
  processes = [pid, *_workers(pid)]
  checkpoints = [
    size
    for path in (workdir / 'checkpoints').rglob('*')
    if (size := _file_size(path)) is not None
  ]
  return soak_report.Sample(
    hours=round((time.monotonic() - start) / 3600, 5),
    step=_last_step(workdir / 'metrics.jsonl'),
    pss_mb=[_memory(number, ('Pss',)) for number in processes],
    uss_mb=[
      _memory(number, ('Private_Clean', 'Private_Dirty'))
      for number in processes
    ],
    files=[len(os.listdir(f'/proc/{number}/fd')) for number in processes],
    threads=[len(os.listdir(f'/proc/{number}/task')) for number in processes],
    shared_memory=len(os.listdir(f'/proc/{pid}/root/dev/shm')),
    checkpoints=len(list((workdir / 'checkpoints').iterdir())),
    checkpoint_mb=round(sum(checkpoints) / 1e6, 3),
  )


def _workers(pid: int) -> list[int]:
  """Grain's worker processes; Python's resource tracker is no worker."""
  threads = pathlib.Path(f'/proc/{pid}/task').iterdir()
  children = ' '.join(_read(thread / 'children') for thread in threads)
  return sorted(
    child
    for child in map(int, children.split())
    if 'spawn_main' in _read(pathlib.Path(f'/proc/{child}/cmdline'))
  )


def _memory(pid: int, names: Sequence[str]) -> float:
  """The sum of some of the kernel's figures of a process, in MB."""
  text = _read(pathlib.Path(f'/proc/{pid}/smaps_rollup'))
  found = re.findall(rf'^(?:{"|".join(names)}): +(\d+) kB', text, re.M)
  return round(sum(map(int, found)) * 1024 / 1e6, 2)


def _read(path: pathlib.Path) -> str:
  """A file, or nothing where it has gone."""
  try:
    return path.read_text()
  except OSError:
    return ''


def _file_size(path: pathlib.Path) -> int | None:
  """Bytes of a file; None of what is not one, or is one no more."""
  try:
    return path.stat().st_size if path.is_file() else None
  except OSError:
    return None


def _last_step(metrics: pathlib.Path) -> int:
  """The step of the last whole row."""
  with open(metrics, 'rb') as file:
    file.seek(max(0, metrics.stat().st_size - 8192))
    found = re.findall(rb'\{"step": (\d+)[^\n]*\}\n', file.read())
  return int(found[-1]) if found else 0


def _replay(folder: pathlib.Path) -> tuple[int, bool]:
  """Repeats the steps before the last checkpoint.

  Returns:
    The step of the last checkpoint, and whether all bits came out again.
  """
  checkpoints = folder / 'run' / 'checkpoints'
  *_, before, last = sorted(int(path.name) for path in checkpoints.iterdir())
  again = folder / 'replay' / 'checkpoints'
  shutil.copytree(checkpoints / str(before), again / str(before))
  process = _start(
    folder, 'replay', data__workers=0, checkpoint__every=last, eval__every=0
  )
  try:
    _wait(process, (again / str(last)).exists)
  finally:
    process.kill()
    process.wait()
  first, second = (
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(
      parent / str(last) / 'state'
    )
    for parent in (checkpoints, again)
  )
  same = jax.tree.map(np.array_equal, first, second)
  return last, all(jax.tree.leaves(same))


def _wait(
  process: subprocess.Popen[bytes], happened: Callable[[], bool]
) -> None:
  """Waits for something that a process does, ten minutes at most."""
  end = time.monotonic() + 600
  while not happened():
    if process.poll() is not None or time.monotonic() > end:
      process.kill()
      sys.exit(f'error: {" ".join(map(str, process.args))} did not get far')  # type: ignore[arg-type]
    time.sleep(0.2)


if __name__ == '__main__':
  main()
