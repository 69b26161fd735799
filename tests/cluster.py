"""Starts several processes, as a launcher would."""

import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tiny

from ijepa_jax import launch

# Of every process.
_DEVICES = 2


def environments(processes: int, devices: int) -> list[dict[str, str]]:
  """Of processes that find each other; one alone joins nobody.

  Args:
    processes: how many.
    devices: simulated, of every process.
  """
  port = launch.free_port()
  flags = f'--xla_force_host_platform_device_count={devices}'
  return [
    tiny.environment()
    | {
      'XLA_FLAGS': flags,
      'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
      'JAX_NUM_PROCESSES': str(processes),
      'JAX_PROCESS_ID': str(process),
    }
    for process in range(processes)
  ]


def start_script(
  name: str, arguments: Sequence[Any], environment: Mapping[str, str]
) -> subprocess.Popen[str]:
  """Starts a Python file that lies beside this one; to be communicated with."""
  return subprocess.Popen(
    [
      sys.executable,
      str(pathlib.Path(__file__).with_name(name)),
      *map(str, arguments),
    ],
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


class Cluster:
  """The processes of one run of the tiny config; leaves none behind."""

  def __init__(
    self, workdir: pathlib.Path, processes: int = 2, **overrides: Any
  ):
    """Starts them.

    Args:
      workdir: of the run.
      processes: how many.
      overrides: fields of the config, with `__` for the dot; `each`: a
        function from a process's number to more fields, for it alone;
        `command`: another command in place of the run.
    """
    other = overrides.pop('command', None)
    each = overrides.pop('each', lambda _: {})
    self.workdir = workdir
    self._logs = [
      workdir.parent / f'{workdir.name}_{process}.log'
      for process in range(processes)
    ]
    self.processes = []
    found = environments(processes, _DEVICES)
    for process, log in enumerate(self._logs):
      with log.open('w') as file:
        self.processes.append(
          subprocess.Popen(
            other or tiny.command(workdir, **(overrides | each(process))),
            env=found[process],
            stdout=file,
            stderr=subprocess.STDOUT,
          )
        )

  def __enter__(self) -> 'Cluster':
    return self

  def __exit__(self, *_: object) -> None:
    for process in self.processes:
      process.kill()
      process.wait()

  def log(self, process: int) -> str:
    """What a process has printed so far."""
    return self._logs[process].read_text()

  def steps(self) -> int:
    """Rows of the loss so far."""
    file = self.workdir / 'metrics.jsonl'
    return file.read_text().count('train/loss') if file.exists() else 0

  def wait_for_steps(self, count: int, seconds: float = 150) -> None:
    """Until that many steps are in metrics.jsonl."""
    self.wait_until(lambda: self.steps() >= count, seconds)

  def wait_until(
    self, condition: Callable[[], Any], seconds: float = 150
  ) -> None:
    """Until it is true; no process may end before."""
    end = time.monotonic() + seconds
    while not condition():
      assert time.monotonic() < end, self.log(0)
      codes = [process.poll() for process in self.processes]
      assert codes == [None] * len(codes), self.log(0)
      time.sleep(0.01)

  def send(self, number: signal.Signals, process: int) -> None:
    """Sends a signal to one process."""
    self.processes[process].send_signal(number)

  def wait(self, seconds: float = 150, but: int | None = None) -> list[int]:
    """Exit codes, when all have ended, or all `but` one."""
    end = time.monotonic() + seconds
    codes = []
    for number, process in enumerate(self.processes):
      if number != but:
        try:
          codes.append(process.wait(max(0.1, end - time.monotonic())))
        except subprocess.TimeoutExpired:
          raise AssertionError(self.log(number)) from None
    return codes
