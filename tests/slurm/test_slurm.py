"""The real launcher in a real SLURM: two tasks, on the CPU."""

import os
import pathlib
import signal
import sys

import daemons
import pytest
import tiny
from test_faults import STEPS, has_steps, wait_for

SCRIPT = str(tiny.ROOT / 'launch' / 'slurm.sbatch')
DONE = {'COMPLETED', 'FAILED', 'CANCELLED'}


def submit(slurm, workdir, *options, coordinator=None, **overrides):
  """Submits a tiny run by `submit.py`; returns the job's number."""
  environment = tiny.environment() | {'PYTHON': sys.executable}
  if coordinator is not None:
    environment['JAX_COORDINATOR_ADDRESS'] = coordinator
  _, _, _, config, _, *fields = tiny.command(workdir, **overrides)
  output = slurm.call(
    sys.executable,
    str(tiny.ROOT / 'launch' / 'submit.py'),
    config,
    f'--workdir={workdir}',
    *('--gpus=0', '--cpus-per-task=1', '--sbatch=--ntasks-per-node=2'),
    *options,
    '--',
    *fields,
    **environment,
  )
  return output.split()[-1]


def submit_stub(slurm, workdir, script):
  """Submits the launcher with a shell script in place of Python."""
  workdir.mkdir()
  stub = workdir / 'python'
  stub.write_text('#!/bin/bash\n' + script)
  stub.chmod(0o755)
  return slurm.call(
    *('sbatch', '--parsable', '--ntasks=2', f'--output={workdir}/job.log'),
    *(SCRIPT, f'--workdir={workdir}'),
    PYTHON=str(stub),
  )


def wait_until_done(slurm, job, seconds=120):
  wait_for(lambda: slurm.job(job)['JobState'] in DONE, seconds)
  return slurm.job(job)


def log(workdir, job):
  """What the launcher said, all attempts of it; empty before the first."""
  file = workdir / 'logs' / f'slurm_{job}.log'
  return file.read_text() if file.exists() else ''


def task_log(workdir, job, task):
  file = workdir / 'logs' / f'slurm_{job}' / f'task_{task:04}.log'
  return file.read_text() if file.exists() else ''


def losses(workdir):
  return [(row['step'], row['train/loss']) for row in tiny.rows(workdir)]


@pytest.fixture(scope='module')
def uninterrupted(slurm, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('uninterrupted')
  job = submit(slurm, workdir, '--time=10', total_steps=STEPS)
  state = wait_until_done(slurm, job, 300)
  assert state['JobState'] == 'COMPLETED', task_log(workdir, job, 0)
  assert 'compiling for 2 cpu' in task_log(workdir, job, 0)
  assert 'Trained' not in task_log(workdir, job, 1)
  return workdir


def test_only_what_can_be_continued_is_queued_again(slurm, tmp_path):
  # The codes of the two tasks, and the job's exit code and requeues.
  cases = {
    (0, 0): ('0', '0'),
    (1, 1): ('1', '0'),
    (2, 2): ('2', '0'),
    (4, 4): ('4', '0'),
    (76, 3): ('3', '0'),  # the others lost a process that had bad data
    (130, 0): ('130', '0'),
    (75, 75): ('0', '1'),
    # Lost or killed, twice and without a new checkpoint: no third time.
    (76, 0): ('76', '1'),
    (76, 137): ('76', '1'),
  }
  jobs = {}
  for first, second in cases:
    # The one with an error of its own ends first, as in a real run.
    jobs[first, second] = submit_stub(
      slurm,
      tmp_path / f'{first}_{second}',
      f'codes=({first} {second})\n'
      'code=${codes[SLURM_PROCID]}\n'
      '((code == 75 && SLURM_RESTART_COUNT)) && exit 0\n'
      'exit $code\n',
    )
  seen = {}
  for codes, job in jobs.items():
    state = wait_until_done(slurm, job)
    seen[codes] = (state['ExitCode'].partition(':')[0], state['Restarts'])
  assert seen == cases


def test_a_cancelled_job_saves_and_stays_cancelled(slurm, tmp_path):
  workdir = tmp_path / 'run'
  job = submit_stub(
    slurm,
    workdir,
    'trap "exit 75" TERM\n: > started_$SLURM_PROCID\n'
    'for ((i = 0; i < 600; ++i)); do sleep 0.1; done\n'.replace(
      'started', f'{workdir}/started'
    ),
  )
  wait_for(lambda: len(list(workdir.glob('started_*'))) == 2)
  slurm.call('scancel', job)
  assert wait_until_done(slurm, job)['JobState'] == 'CANCELLED'
  codes = workdir.glob('logs/*/exit_code.*')
  assert [path.read_text() for path in codes] == ['75\n', '75\n']
  assert slurm.job(job)['Restarts'] == '0'
  assert 'left to SLURM' in (workdir / 'job.log').read_text()


def kill_a_task(slurm, job):
  """SIGKILL to the Python of task 1, as the kernel does without memory."""
  for process in pathlib.Path('/proc').glob('[0-9]*'):
    wanted = {f'SLURM_JOB_ID={job}'.encode(), b'SLURM_PROCID=1'}
    try:
      command = (process / 'cmdline').read_bytes().split(b'\0')
      if b'ijepa_jax.main' not in command[:3]:
        continue
      environment = (process / 'environ').read_bytes().split(b'\0')
    except (FileNotFoundError, ProcessLookupError):
      continue  # ended meanwhile
    if wanted <= set(environment):
      os.kill(int(process.name), signal.SIGKILL)
      return
  raise AssertionError('task 1 is not running')


def send_term(slurm, job):
  slurm.call('scancel', '--signal=TERM', job)


def requeue(slurm, job):
  slurm.call('scontrol', 'requeue', job)


def preempt(slurm, job):
  slurm.call(
    *('sbatch', '--partition=urgent', f'--ntasks={daemons.CPUS}'),
    *('--output=/dev/null', '--wrap=sleep 1'),
  )


def test_a_run_stopped_in_four_ways_ends_as_if_it_never_was(
  slurm, tmp_path, uninterrupted
):
  job = submit(slurm, tmp_path, '--time=10', total_steps=STEPS, data__workers=1)
  ways = (send_term, kill_a_task, requeue, preempt)
  for attempt, stop in enumerate(ways):
    wait_for(lambda n=attempt: has_steps(tmp_path, 3 + 8 * n), 300)
    stop(slurm, job)
    # A task that died ends the other one too, and the job, in seconds.
    wait_for(
      lambda n=attempt: slurm.job(job)['Restarts'] == str(n + 1), seconds=60
    )
  state = wait_until_done(slurm, job, 300)
  assert state['JobState'] == 'COMPLETED', log(tmp_path, job)
  # At least: SLURM 22.05 was seen to stop the job once more when it was back.
  assert task_log(tmp_path, job, 0).count('resuming from') >= len(ways)
  assert log(tmp_path, job).count('saved at step') >= 3
  assert log(tmp_path, job).count('lost at step') == 1
  tiny.assert_same_state(tmp_path, uninterrupted, STEPS)
  assert losses(tmp_path) == losses(uninterrupted)


def test_two_nodes_train_what_one_does(slurm, tmp_path, uninterrupted):
  (port,) = daemons.free_ports(1)
  # JAX would take the first node's name, which is none of the network's.
  job = submit(
    slurm,
    tmp_path,
    *('--time=10', '--partition=pair', '--nodes=2'),
    '--sbatch=--ntasks-per-node=1',
    coordinator=f'127.0.0.1:{port}',
    total_steps=STEPS,
  )
  state = wait_until_done(slurm, job, 300)
  assert state['JobState'] == 'COMPLETED', task_log(tmp_path, job, 0)
  assert state['NumNodes'] == '2'
  assert 'compiling for 2 cpu' in task_log(tmp_path, job, 0)
  assert losses(tmp_path) == losses(uninterrupted)


def test_before_the_time_limit_a_run_saves_and_is_queued_again(slurm, tmp_path):
  job = submit(
    slurm,
    tmp_path,
    *('--time=1', '--sbatch=--signal=TERM@15'),
    total_steps=100_000,
    checkpoint__every=100_000,
    log__every=10,
  )
  wait_for(lambda: 'queued again' in log(tmp_path, job), 120)
  wait_for(lambda: 'resuming from' in task_log(tmp_path, job, 0), 120)
  assert 'error: stopped by ' in task_log(tmp_path, job, 0)
  slurm.call('scancel', '--full', '--signal=KILL', job)
  slurm.call('scancel', job)
