"""Two processes end together, whatever happens to one of them."""

import signal
import socket

import cluster
import pytest
import tiny

from ijepa_jax import errors

KILLED, LOST = -signal.SIGKILL, errors.LostProcess.exit_code


def start(way, environment):
  return cluster.start_script('ending_process.py', [way], environment)


def error_lines(outputs):
  lines = ''.join(outputs).splitlines()
  return [line for line in lines if line.startswith('error: ')]


@pytest.mark.parametrize(
  ('way', 'codes', 'line'),
  [
    ('well', [0, 0], None),
    ('data error', [3, 3], 'error: process 1: bad records'),
    ('die idle', [LOST, KILLED], 'error: lost another process'),
    *(
      pytest.param(*row, marks=pytest.mark.slow)
      for row in (
        ('bug', [1, 1], 'error: process 1: TypeError: a bug'),
        ('everywhere', [4, 4], 'not finite'),
        ('interrupted', [75, 75], 'error: stopped, saved'),
        ('die in a collective', [LOST, KILLED], 'error: lost another process'),
        ('die first', [KILLED, LOST], 'error: lost another process'),
        ('differ', [2, 2], 'error: process 1: seed is 1 here and 0'),
      )
    ),
  ],
)
def test_all_end_with_one_code_and_one_line(way, codes, line):
  processes = [start(way, each) for each in cluster.environments(2, 1)]
  outputs = [process.communicate(timeout=90)[0] for process in processes]
  assert [process.returncode for process in processes] == codes, outputs
  told = error_lines(outputs)
  assert len(told) == (0 if line is None else 1), outputs
  if line is not None:
    assert line in told[0]


@pytest.mark.slow
@pytest.mark.parametrize('process', [0, 1])
def test_a_process_that_waits_in_vain_ends(process):
  waiting = start('absent', cluster.environments(2, 1)[process])
  output, _ = waiting.communicate(timeout=90)
  assert waiting.returncode == LOST, output
  (line,) = error_lines([output])
  assert 'distributed.start_seconds=2' in line


@pytest.mark.parametrize(
  'numbers',
  [
    {'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '0'},
    # JAX finds out that this is process 0.
    {
      'SLURM_JOB_ID': '1',
      'SLURM_NTASKS': '2',
      'SLURM_PROCID': '0',
      'SLURM_LOCALID': '0',
      'SLURM_STEP_NUM_TASKS': '2',
      'SLURM_STEP_NODELIST': 'localhost',
    },
  ],
  ids=['told', 'detected'],
)
def test_a_port_that_is_taken_is_one_line(numbers):
  with socket.socket() as taken:
    taken.bind(('127.0.0.1', 0))
    taken.listen()
    address = f'127.0.0.1:{taken.getsockname()[1]}'
    process = start(
      'well',
      tiny.environment() | numbers | {'JAX_COORDINATOR_ADDRESS': address},
    )
    output, _ = process.communicate(timeout=60)
  assert process.returncode == LOST, output
  assert error_lines([output])[0].endswith('Address already in use')
