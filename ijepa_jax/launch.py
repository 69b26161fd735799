"""Trains with several processes on this machine.

  python -m ijepa_jax.launch --processes=2 -- --config=configs/vitb16.py ...

What follows `--` are the flags of ijepa_jax.main, the same for all processes;
they are checked before anything starts. The console shows process 0;
WORKDIR/logs/process_N.log has what process N wrote. The processes meet on a
free port of the loopback interface.

NVIDIA GPUs are shared out in order, an equal number for each process, or
--devices-per-process; without GPUs that is the number of CPU devices to make.

SIGTERM and Ctrl-C let all processes save the same step and end; a second one
ends them at once. When a process fails, the others get 10 seconds to end by
themselves, and are killed then. The exit code is that of the process with the
most to say: an error of its own (2, 3, 4, ...), else 128 + N, killed by signal
N, else 76, another process was lost, else 75, saved, else 0; among equals that
of the lowest process.
"""

import argparse
import contextlib
import ctypes
import glob
import itertools
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Sequence
from typing import IO

from ijepa_jax import errors
from ijepa_jax import workdir as workdir_lib
from ijepa_jax.config import arguments, command

# Seconds that the others get after the first process failed, and after the
# first one ended as it should: the rest may still be writing a checkpoint.
_AFTER_FAILURE = 10.0
_AFTER_END = 120.0

# What an exit code says of a run, least last; an error of its own is 0, and a
# process that was killed is 1. A Ctrl-C before training (130) is an error.
_RANKS = {
  130: 0,
  errors.LostProcess.exit_code: 2,
  errors.Interrupted.exit_code: 3,
  0: 4,
}
_GOOD = frozenset({0, errors.Interrupted.exit_code})

_POLL_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
# Looked up here: a process that was just forked may not load libraries.
_PRCTL = ctypes.CDLL(None).prctl


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command.

  Args:
    argv: its arguments, default those of the process.

  Returns:
    The exit code, see the module.

  Raises:
    UserError: bad arguments, or a config that training would refuse.
  """
  argv = sys.argv[1:] if argv is None else list(argv)
  split = argv.index('--') if '--' in argv else len(argv)
  args, flags = _parse(argv[:split]), argv[split + 1 :]
  _, workdir = command.parse(['launch', *flags])
  environments = process_environments(
    args.processes, args.devices_per_process, count_gpus(), free_port()
  )
  logs = workdir / 'logs'
  workdir_lib.make(workdir)
  workdir_lib.make(logs)
  training = [sys.executable, '-m', 'ijepa_jax.main', *flags]
  with Processes(training, environments, logs) as processes:
    return processes.wait()


def _parse(argv: Sequence[str]) -> argparse.Namespace:
  parser = arguments.Parser(
    prog='python -m ijepa_jax.launch',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    usage='%(prog)s --processes=N [--devices-per-process=N] -- FLAGS_OF_MAIN',
  )
  parser.add_argument(
    '--processes', type=arguments.positive, required=True, metavar='N'
  )
  parser.add_argument(
    '--devices-per-process',
    type=arguments.positive,
    metavar='N',
    help='default: an equal share of the GPUs, or one CPU device',
  )
  return parser.parse_args(argv)


def count_gpus() -> int:
  """How many NVIDIA GPUs a process that is started here would use."""
  platforms = os.environ.get('JAX_PLATFORMS', '')
  if platforms and not {'cuda', 'gpu'} & set(platforms.split(',')):
    return 0
  visible = os.environ.get('CUDA_VISIBLE_DEVICES')
  if visible is not None:
    # A number below 0 hides what comes after it, says CUDA.
    names = visible.replace(' ', '').split(',')
    return len(list(itertools.takewhile(lambda n: n and n[0] != '-', names)))
  return len(glob.glob('/dev/nvidia[0-9]*'))


def free_port() -> int:
  """A port of this machine that nobody listens on.

  Of those below what systems give to outgoing connections, which might take it
  before the coordinator does.

  Raises:
    UserError: a hundred of them are taken.
  """
  for port in random.sample(range(10_000, 30_000), 100):
    with socket.socket() as probe, contextlib.suppress(OSError):
      probe.bind(('127.0.0.1', port))
      return port
  raise errors.UserError(
    'no free port from 10000 to 29999 on 127.0.0.1 for the coordinator'
  )


def process_environments(
  processes: int, devices: int | None, gpus: int, port: int
) -> list[dict[str, str]]:
  """What each process finds in its environment, besides what is there.

  Args:
    processes: how many there are.
    devices: of one process; None: an equal share of the GPUs, or one CPU.
    gpus: GPUs on this machine.
    port: of the coordinator, on the loopback interface.

  Raises:
    UserError: there are too few GPUs, or they cannot be shared equally.
  """
  if devices is None and gpus % processes:
    raise errors.UserError(
      f'--processes={processes}: {gpus} GPUs cannot be shared equally; '
      'expected a divisor, or --devices-per-process'
    )
  devices = devices or max(gpus // processes, 1)
  if gpus and processes * devices > gpus:
    raise errors.UserError(
      f'--processes={processes} with {devices} devices each: there are '
      f'{gpus} GPUs; for CPU devices set JAX_PLATFORMS=cpu'
    )
  address = f'127.0.0.1:{port}'
  result = []
  for process in range(processes):
    first = process * devices
    result.append(
      {
        'JAX_COORDINATOR_ADDRESS': address,
        'JAX_COORDINATOR_BIND_ADDRESS': address,
        'JAX_NUM_PROCESSES': str(processes),
        'JAX_PROCESS_ID': str(process),
      }
      | (
        {
          'JAX_LOCAL_DEVICE_IDS': ','.join(
            str(number) for number in range(first, first + devices)
          )
        }
        if gpus
        else {'JAX_NUM_CPU_DEVICES': str(devices)}
      )
    )
  return result


def exit_code(codes: Sequence[int]) -> int:
  """The exit code that stands for all processes; the module says which.

  Args:
    codes: of the processes, in their order, killed by a signal as 128 + N.
  """

  def rank(code: int) -> int:
    if code in _RANKS:
      return _RANKS[code]
    return 1 if code > 128 else 0

  return min(codes, key=rank)


class Processes:
  """Context manager: the running processes and their logs."""

  def __init__(
    self,
    command: Sequence[str],
    environments: Sequence[dict[str, str]],
    logs: pathlib.Path,
  ) -> None:
    """Says what to run; `with` starts it, and leaves nothing running.

    Args:
      command: of every process.
      environments: of each process, besides the launcher's own.
      logs: a directory for `process_N.log`.
    """
    self._command = command
    self._environments = environments
    self._logs = logs
    self._children: list[subprocess.Popen[bytes]] = []
    self._killed: set[int] = set()
    self._signals = 0
    self._stack = contextlib.ExitStack()

  def __enter__(self) -> 'Processes':
    logs = [
      self._stack.enter_context(self.log(process).open('ab'))
      for process in range(len(self._environments))
    ]
    for process, extra in enumerate(self._environments):
      self._children.append(
        subprocess.Popen(
          self._command,
          env=os.environ | extra,
          stdin=subprocess.DEVNULL,
          stdout=logs[process] if process else subprocess.PIPE,
          stderr=subprocess.STDOUT,
          # Out of the terminal's group: a Ctrl-C arrives once, from here.
          start_new_session=True,
          preexec_fn=_end_with_parent,
        )
      )
    # A signal before this ends the launcher, and the processes with it.
    for number in (signal.SIGTERM, signal.SIGINT):
      previous = signal.signal(number, self._forward)
      self._stack.callback(signal.signal, number, previous)
    # `preexec_fn` is safe only while there is one thread.
    output = self._children[0].stdout
    assert output is not None  # it is a pipe
    self._stack.enter_context(output)
    reader = threading.Thread(target=_copy, args=(output, logs[0]))
    reader.start()
    self._stack.callback(reader.join)  # before the logs are closed
    return self

  def __exit__(self, *_: object) -> None:
    self._kill()
    for child in self._children:
      child.wait()
      # Input workers that outlive it would keep its output open.
      with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    self._stack.close()

  def log(self, process: int) -> pathlib.Path:
    """The log of one process."""
    return self._logs / f'process_{process}.log'

  def wait(self) -> int:
    """Waits for all processes, says what went wrong, returns the exit code."""
    deadline = None
    # A list, so that all are asked.
    while None in (polled := [child.poll() for child in self._children]):
      ended = [code for code in polled if code is not None]
      if ended:
        limit = _AFTER_END if _GOOD.issuperset(ended) else _AFTER_FAILURE
        end = time.monotonic() + limit
        deadline = end if deadline is None else min(deadline, end)
        if time.monotonic() >= deadline:
          self._kill()
      time.sleep(_POLL_SECONDS)
    codes = [_code(child) for child in self._children]
    for process, code in enumerate(codes):
      if code and process:
        _say(f'process {process} {self._ended(process, code)}')
    # What was killed here counts only when nothing else failed.
    failed = [
      code
      for process, code in enumerate(codes)
      if process not in self._killed and code not in _GOOD
    ]
    return exit_code(failed or codes)

  def _ended(self, process: int, code: int) -> str:
    if process in self._killed:
      return f'did not end in time and was killed; see {self.log(process)}'
    return f'ended with exit code {code}; see {self.log(process)}'

  def _forward(self, number: int, _: types.FrameType | None) -> None:
    """Lets all processes save and end; a second time, ends them at once."""
    self._signals += 1
    if self._signals > 1:
      self._kill()
      return
    name = signal.Signals(number).name
    _say(f'{name}: waiting for all processes to save; again: end at once')
    for child in self._children:
      child.terminate()

  def _kill(self) -> None:
    for process, child in enumerate(self._children):
      if child.poll() is None:
        self._killed.add(process)
        child.kill()


def _end_with_parent() -> None:
  """Asks Linux for SIGTERM when the launcher dies, even by SIGKILL."""
  _PRCTL(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _copy(source: IO[bytes], log: IO[bytes]) -> None:
  """Shows what process 0 writes, as long as somebody reads it, and keeps it."""
  shown = True
  while data := os.read(source.fileno(), 1 << 16):
    log.write(data)
    log.flush()
    if shown:
      try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
      except BrokenPipeError:
        shown = False


def _code(child: subprocess.Popen[bytes]) -> int:
  number = child.returncode
  return number if number >= 0 else 128 - number


def _say(message: str) -> None:
  print(message, file=sys.stderr, flush=True)


if __name__ == '__main__':
  with errors.exit_cleanly():
    sys.exit(main())
