"""`python -m ijepa_jax.launch`: several processes on this machine."""

import os
import signal
import subprocess
import sys
import time

import pytest
import tiny
from test_faults import has_steps, wait_for

from ijepa_jax import errors, launch


def shell(script, processes=2):
  """A command, and the environments of the processes that run it."""
  numbers = [{'N': str(process)} for process in range(processes)]
  return ['bash', '-c', script], numbers


def outcome(script, logs):
  with launch.Processes(*shell(script), logs) as processes:
    return processes.wait()


def test_gpus_are_shared_out_in_order():
  environments = launch.process_environments(2, None, gpus=8, port=1234)
  assert environments[1] == {
    'JAX_COORDINATOR_ADDRESS': '127.0.0.1:1234',
    'JAX_COORDINATOR_BIND_ADDRESS': '127.0.0.1:1234',
    'JAX_NUM_PROCESSES': '2',
    'JAX_PROCESS_ID': '1',
    'JAX_LOCAL_DEVICE_IDS': '4,5,6,7',
  }


def test_without_gpus_each_process_makes_cpu_devices():
  environments = launch.process_environments(2, 4, gpus=0, port=1)
  assert [e['JAX_NUM_CPU_DEVICES'] for e in environments] == ['4', '4']
  assert all('JAX_LOCAL_DEVICE_IDS' not in e for e in environments)


@pytest.mark.parametrize(
  ('processes', 'devices', 'expected'),
  [(3, None, 'a divisor'), (3, 4, 'there are 8 GPUs')],
)
def test_gpus_that_are_not_there_are_refused(processes, devices, expected):
  with pytest.raises(errors.UserError, match=expected):
    launch.process_environments(processes, devices, gpus=8, port=1)


def test_gpus_are_counted_as_jax_would_see_them(monkeypatch):
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,3,5')
  monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
  assert launch.count_gpus() == 3
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')
  assert launch.count_gpus() == 0
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0')
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  assert launch.count_gpus() == 0


@pytest.mark.parametrize(
  ('codes', 'expected'),
  [
    ((0, 0), 0),
    ((0, 75), 75),
    ((75, 76), 76),
    ((76, 137), 137),
    ((137, 3, 76), 3),
    ((139, 137), 139),
    ((75, 130), 130),
  ],
)
def test_the_exit_code_is_that_of_the_cause(codes, expected):
  assert launch.exit_code(codes) == expected


def test_a_failed_process_ends_all_and_is_named(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(launch, '_AFTER_FAILURE', 0.5)
  start = time.monotonic()
  # Deaf to SIGTERM, as a process is that waits in a collective.
  script = '((N)) && exit 3; trap "" TERM; while :; do sleep 0.1; done'
  assert outcome(script, tmp_path) == 3
  assert time.monotonic() - start < 60
  said = capsys.readouterr().err
  assert f'exit code 3; see {tmp_path / "process_1.log"}' in said


def test_a_process_that_never_ends_is_no_success(tmp_path, monkeypatch):
  monkeypatch.setattr(launch, '_AFTER_END', 0.5)
  script = '((N)) && exit 75; sleep 1000'
  assert outcome(script, tmp_path) == 128 + signal.SIGKILL


def test_process_0_is_shown_and_all_have_a_log(tmp_path, capfdbinary):
  assert outcome('echo "this is $N"; echo error >&2', tmp_path) == 0
  assert capfdbinary.readouterr().out == b'this is 0\nerror\n'
  logs = [tmp_path / f'process_{process}.log' for process in (0, 1)]
  assert [log.read_text().split('\n')[0] for log in logs] == [
    'this is 0',
    'this is 1',
  ]


def test_the_log_goes_on_when_nobody_reads_the_console(tmp_path):
  code = (
    'import pathlib; from ijepa_jax import launch\n'
    'script = "yes | head -n 200000; echo end"\n'
    'with launch.Processes(["bash", "-c", script], [{}],'
    ' pathlib.Path.cwd()) as p:\n  p.wait()\n'
  )
  pipe = f"{sys.executable} -c '{code}' | head -n 1"
  subprocess.run(
    ['bash', '-c', pipe],
    cwd=tmp_path,
    env=tiny.environment(),
    stdout=subprocess.DEVNULL,
    timeout=60,
    check=True,
  )
  assert (tmp_path / 'process_0.log').read_text().endswith('y\nend\n')


def test_processes_end_with_a_launcher_that_is_killed(tmp_path):
  code = (
    'import pathlib, sys; from ijepa_jax import launch\n'
    'script = "echo $$ > pid_$N; exec sleep 1000"\n'
    'environments = [{"N": "0"}, {"N": "1"}]\n'
    'with launch.Processes(["bash", "-c", script], environments,'
    ' pathlib.Path.cwd()) as p:\n  p.wait()\n'
  )
  launcher = subprocess.Popen(
    [sys.executable, '-c', code], cwd=tmp_path, env=tiny.environment()
  )
  files = [tmp_path / f'pid_{process}' for process in (0, 1)]
  wait_for(lambda: all(f.exists() and f.read_text() for f in files))
  launcher.kill()
  launcher.wait()
  for file in files:
    # Gone, or waiting for init to take note.
    status = f'/proc/{int(file.read_text())}/status'
    wait_for(lambda s=status: not os.path.exists(s) or '(zombie)' in _read(s))


def _read(path):
  try:
    with open(path) as file:
      return file.read()
  except (FileNotFoundError, ProcessLookupError):
    return '(zombie)'


def launcher(workdir, *options, **overrides):
  python, _, _, *flags = tiny.command(workdir, **overrides)
  return [python, '-m', 'ijepa_jax.launch', *options, '--', *flags]


def test_a_bad_config_starts_nothing(tmp_path):
  result = subprocess.run(
    launcher(tmp_path / 'run', '--processes=2', batch_size=-1),
    env=tiny.environment(),
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 2
  assert result.stderr.startswith('error: batch_size=-1')
  assert result.stderr.count('\n') == 1
  assert not (tmp_path / 'run').exists()


def test_two_processes_train_and_save_together_at_sigterm(tmp_path):
  process = subprocess.Popen(
    launcher(
      tmp_path, '--processes=2', total_steps=1000, checkpoint__every=1000
    ),
    env=tiny.environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  wait_for(lambda: has_steps(tmp_path, 3) or process.poll() is not None)
  process.terminate()
  output, _ = process.communicate(timeout=120)
  assert process.returncode == 75, output
  assert 'compiling for 2 cpu' in output
  (step,) = (tmp_path / 'checkpoints').glob('[0-9]*')
  logs = [
    (tmp_path / 'logs' / f'process_{number}.log').read_text()
    for number in (0, 1)
  ]
  assert f'at step {step.name}, saved' in logs[0]
  assert 'error: ' not in logs[1]  # told once for all
