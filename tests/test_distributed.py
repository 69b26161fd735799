"""Several processes of the real command train one run."""

import random
import signal
import time

import cluster
import numpy as np
import pytest
import tiny

from ijepa_jax import distributed, errors

STEPS = 6


def error_lines(run, processes=2):
  """Lines for the user, over all processes."""
  return [
    line
    for process in range(processes)
    for line in run.log(process).splitlines()
    if line.startswith('error: ')
  ]


def figures(workdir):
  """What a run measured, less what depends on the clock."""
  clock = {
    'time',
    'train/images_per_second',
    'train/data_wait_share',
    'train/model_tflops',
  }
  return [
    {name: row[name] for name in row.keys() - clock}
    for row in tiny.rows(workdir)
  ]


def assert_same_figures(workdir, other):
  ours, theirs = figures(workdir), figures(other)
  assert [row.keys() for row in ours] == [row.keys() for row in theirs]
  for mine, its in zip(ours, theirs, strict=True):
    for name, value in mine.items():
      # RankMe squares what float32 leaves of the smallest directions.
      rank = 'rankme' in name or name == 'health/lidar'
      allowed = 1e-3 if rank else 1e-6
      assert value == pytest.approx(its[name], rel=1e-6, abs=allowed), name


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('alone') / 'run'
  result = tiny.run(workdir, total_steps=STEPS, eval__every=3)
  assert result.returncode == 0, result.stderr
  return workdir


# --- The same run anywhere -------------------------------------------------


def test_two_processes_save_on_a_signal_and_train_the_run_of_one(
  tmp_path, alone
):
  workdir = tmp_path / 'run'
  named = {'total_steps': STEPS, 'eval__every': 3}
  with cluster.Cluster(workdir, **named) as run:
    run.wait_for_steps(1)
    run.send(signal.SIGTERM, 1)
    codes = run.wait()
    if codes != [0, 0]:  # unless it was too quick
      assert codes == [75, 75], run.log(0) + run.log(1)
      (line,) = error_lines(run)
      assert 'the same command continues' in line
  with cluster.Cluster(workdir, **named) as run:
    assert run.wait() == [0, 0], run.log(0) + run.log(1)
    assert 'Trained 6 steps' in run.log(0)
    assert 'step ' not in run.log(1)
  assert_same_figures(workdir, alone)


@pytest.mark.slow
def test_four_processes_train_the_run_of_one(tmp_path, alone):
  with cluster.Cluster(
    tmp_path / 'run', 4, total_steps=STEPS, eval__every=3
  ) as run:
    assert run.wait() == [0] * 4, run.log(0)
  assert_same_figures(tmp_path / 'run', alone)


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_and_with_more_processes(tmp_path, alone):
  workdir = tmp_path / 'run'
  restored, done = [], 0
  for processes in (4, 2, 1, 2):
    # A run that ends early, as a preempted one: the schedules stay.
    with cluster.Cluster(
      workdir,
      processes,
      total_steps=4 * 100,
      checkpoint__every=1,
      checkpoint__keep=10,
    ) as run:
      run.wait_for_steps(done + 3)  # more than the phase before has left
      run.send(signal.SIGTERM, 0)
      assert run.wait() == [75] * processes, run.log(0)
      done = run.steps()
      restored.append('resuming from' in run.log(0))
  assert restored == [False, True, True, True]
  last = max(int(p.name) for p in (workdir / 'checkpoints').iterdir())
  whole = tmp_path / 'whole'
  result = tiny.run(whole, total_steps=400, checkpoint__every=400)
  assert result.returncode == 0, result.stderr
  losses = [
    [row['train/loss'] for row in tiny.rows(folder) if 'train/loss' in row]
    for folder in (workdir, whole)
  ]
  np.testing.assert_allclose(losses[0][:12], losses[1][:12], rtol=1e-6)
  # Rounding grows with every update.
  np.testing.assert_allclose(losses[0], losses[1][:last], rtol=1e-4)


# --- Faults ----------------------------------------------------------------


@pytest.mark.parametrize(
  ('number', 'process'),
  [
    (signal.SIGKILL, 1),
    pytest.param(signal.SIGKILL, 0, marks=pytest.mark.slow),
    pytest.param(signal.SIGSTOP, 1, marks=pytest.mark.slow),
    pytest.param(signal.SIGSTOP, 0, marks=pytest.mark.slow),
  ],
)
def test_who_loses_a_process_ends(tmp_path, number, process):
  with cluster.Cluster(
    tmp_path / 'run', total_steps=10_000, distributed__heartbeat_seconds=5
  ) as run:
    run.wait_for_steps(3)
    run.send(number, process)
    (code,) = run.wait(60, but=process)
    left = 1 - process
    assert code == errors.LostProcess.exit_code, run.log(left)
    last = run.log(left).strip().splitlines()[-1]
    assert last.startswith('error: lost another process'), run.log(left)


KILLED_STEPS = 24


@pytest.fixture(scope='module')
def never_killed(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('never_killed') / 'run'
  with cluster.Cluster(workdir, total_steps=KILLED_STEPS) as run:
    assert run.wait() == [0, 0], run.log(0)
  return workdir


def wait_for_a_moment(run, kind, rng):
  """Until one of a kind has come at which a run may be killed."""
  begun = set((run.workdir / 'checkpoints').glob('*tmp*'))
  if kind == 'restore':
    run.wait_until(lambda: 'resuming from' in run.log(0))
  elif kind == 'save':
    folder = run.workdir / 'checkpoints'
    run.wait_until(lambda: set(folder.glob('*tmp*')) - begun)
  else:
    aim = run.steps() + rng.randrange(1, 4)
    run.wait_until(lambda: run.steps() >= min(aim, KILLED_STEPS - 2))
  time.sleep(rng.random() / 2)


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(4))  # 20 kills
def test_kills_at_random_moments_do_not_change_the_result(
  tmp_path, never_killed, seed
):
  rng, workdir = random.Random(seed), tmp_path / 'run'
  named = {
    'total_steps': KILLED_STEPS,
    'data__workers': seed % 2,
    'distributed__heartbeat_seconds': 10,
  }
  for kind in ('step', 'save', 'step', 'restore', 'save'):
    with cluster.Cluster(workdir, **named) as run:
      wait_for_a_moment(run, kind, rng)
      victim, begin = rng.randrange(2), time.monotonic()
      run.send(signal.SIGKILL, victim)
      (code,) = run.wait(60, but=victim)
      print(
        f'{kind}, process {victim}, row {run.steps()}: the other one ended '
        f'after {time.monotonic() - begin:.1f} s'
      )
      assert code == errors.LostProcess.exit_code, run.log(1 - victim)
  with cluster.Cluster(workdir, **named) as run:
    assert run.wait() == [0, 0], run.log(0)
  tiny.assert_same_state(workdir, never_killed, KILLED_STEPS)
  assert figures(workdir) == figures(never_killed)


@pytest.mark.slow
def test_ctrl_c_saves_once(tmp_path):
  with cluster.Cluster(tmp_path / 'run', total_steps=10_000) as run:
    run.wait_for_steps(3)
    for process in range(2):
      run.send(signal.SIGINT, process)
    assert run.wait(60) == [75, 75], run.log(0)
    assert len(error_lines(run)) == 1


def test_an_error_on_one_process_ends_all_with_one_line(tmp_path):
  def each(process):
    return (
      {'data__source': 'folder', 'data__path': tmp_path / 'nothing'}
      if (process)
      else {}
    )

  with cluster.Cluster(tmp_path / 'run', each=each) as run:
    assert run.wait(60) == [2, 2], run.log(0) + run.log(1)
    (line,) = error_lines(run)
    assert line.startswith('error: process 1: data.path: '), line
    assert 'Traceback' not in run.log(0) + run.log(1)


@pytest.mark.slow
def test_processes_with_different_configs_are_refused(tmp_path):
  with cluster.Cluster(
    tmp_path / 'run', each=lambda process: {'seed': process}
  ) as run:
    assert run.wait(60) == [2, 2], run.log(0)
    (line,) = error_lines(run)
    assert 'config.seed is 1' in line


@pytest.mark.slow
def test_processes_with_different_workdirs_are_refused(tmp_path, monkeypatch):
  original = tiny.command
  count = iter(range(2))
  monkeypatch.setattr(
    tiny,
    'command',
    lambda workdir, **named: original(
      workdir.with_name(f'run{next(count)}'), **named
    ),
  )
  with cluster.Cluster(tmp_path / 'run') as run:
    assert run.wait(120) == [2, 2], run.log(0)
    (line,) = error_lines(run)
    assert 'all processes share' in line


@pytest.mark.slow
def test_a_nan_is_one_line(tmp_path):
  with cluster.Cluster(
    tmp_path / 'run',
    total_steps=30,
    optim__lr=1e15,
    optim__start_lr=1e15,
    loss='l2',
  ) as run:
    assert run.wait() == [4, 4], run.log(0)
    assert len(error_lines(run)) == 1


# --- What the environment says ----------------------------------------------

THREE = {
  'JAX_COORDINATOR_ADDRESS': '10.0.0.1:12345',
  'JAX_NUM_PROCESSES': '2',
  'JAX_PROCESS_ID': '1',
}
SLURM = {
  'SLURM_JOB_ID': '1',
  'SLURM_NTASKS': '2',
  'SLURM_STEP_NODELIST': 'n[0-1]',
  'SLURM_STEP_NUM_TASKS': '2',
  'SLURM_PROCID': '0',
  'SLURM_LOCALID': '0',
}


def test_a_process_alone_joins_nobody():
  for environment in (
    {},
    {'JAX_NUM_PROCESSES': '1', 'JAX_PROCESS_ID': '0'},
    SLURM | {'SLURM_NTASKS': '1', 'SLURM_STEP_NUM_TASKS': '1'},
    {'OMPI_COMM_WORLD_SIZE': '1'},
    {'KUBERNETES_SERVICE_HOST': '10.0.0.1'},
    {'TPU_WORKER_HOSTNAMES': 'localhost'},
    {'TPU_ML_PLATFORM': 'JAX', 'TPU_SKIP_MDS_QUERY': '1'},
  ):
    assert distributed.settings(environment) is None


def test_what_is_set_is_what_jax_is_told():
  told = distributed.settings(SLURM | THREE)
  assert told['coordinator_address'] == '10.0.0.1:12345'
  assert told['coordinator_bind_address'] is None
  assert (told['num_processes'], told['process_id']) == (2, 1)


def test_processes_of_one_machine_bind_to_it_alone():
  address = {'JAX_COORDINATOR_ADDRESS': '127.0.0.1:12345'}
  told = distributed.settings(THREE | address)
  assert told['coordinator_bind_address'] == '127.0.0.1:12345'
  other = {'JAX_COORDINATOR_BIND_ADDRESS': '127.0.0.2:12345'}
  told = distributed.settings(THREE | address | other)
  assert told['coordinator_bind_address'] == '127.0.0.2:12345'


@pytest.mark.parametrize(
  'environment',
  [
    SLURM,
    SLURM | {'JAX_COORDINATOR_ADDRESS': '127.0.0.1:12345'},
    {'OMPI_COMM_WORLD_SIZE': '2'},
    {'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '0'},
    {'TPU_WORKER_HOSTNAMES': 'a,b'},
  ],
)
def test_jax_detects_clusters(environment):
  assert distributed.settings(environment) == {}


@pytest.mark.parametrize(
  ('environment', 'message'),
  [
    ({'JAX_NUM_PROCESSES': '2'}, 'not JAX_PROCESS_ID'),
    ({'JAX_PROCESS_ID': '0'}, 'not JAX_NUM_PROCESSES'),
    ({'JAX_COORDINATOR_ADDRESS': 'a:1'}, 'not JAX_NUM_PROCESSES'),
    ({'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '0'}, 'HOST:PORT'),
    (THREE | {'JAX_PROCESS_ID': '2'}, 'expected 0 to 1'),
    (THREE | {'JAX_PROCESS_ID': '-1'}, 'whole number'),
    (THREE | {'JAX_NUM_PROCESSES': 'two'}, 'whole number'),
    (THREE | {'JAX_COORDINATOR_ADDRESS': '10.0.0.1'}, 'HOST:PORT'),
    (THREE | {'JAX_COORDINATOR_ADDRESS': '10.0.0.1:x'}, 'HOST:PORT'),
    ({'SLURM_NTASKS': '2'}, 'srun'),
    (SLURM | {'SLURM_STEP_NUM_TASKS': '1'}, 'srun'),
  ],
)
def test_a_wrong_environment_is_one_line(environment, message):
  with pytest.raises(errors.UserError, match=message) as caught:
    distributed.settings(environment)
  assert '\n' not in str(caught.value)
