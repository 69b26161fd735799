"""Two processes of a run agree where one alone sees what is wrong."""

import json
import shutil

import cluster
import pytest
import tiny
from test_damaged_checkpoints import flip
from test_distributed import error_lines

from ijepa_jax import checkpoint, integrity, train, workdir


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A run with checkpoints 2, 4 and 6."""
  folder = tmp_path_factory.mktemp('finished') / 'run'
  train.train(tiny.config(), folder)
  return folder


def test_a_directory_that_process_0_may_not_have_ends_both(tmp_path):
  workdir.make(tmp_path / 'run')
  with (
    workdir.Lock(tmp_path / 'run'),
    cluster.Cluster(tmp_path / 'run') as run,
  ):
    assert run.wait(60) == [2, 2], run.log(0) + run.log(1)
  (line,) = error_lines(run)
  assert 'is in use by a run on host' in line
  assert not (tmp_path / 'run' / 'checkpoints').exists()


@pytest.mark.slow
def test_a_file_that_one_process_finds_changed_stops_both(tmp_path, finished):
  shutil.copytree(finished, tmp_path / 'run')
  folder = tmp_path / 'run' / 'checkpoints'
  listed = json.loads((folder / '6' / integrity.FILE).read_text())['crc32']
  flip(folder / '6' / sorted(listed)[1])  # the share of process 1

  with cluster.Cluster(tmp_path / 'run') as run:
    assert run.wait(60) == [2, 2], run.log(0) + run.log(1)
    (line,) = error_lines(run)
    assert 'is damaged' in line
    assert '--config.checkpoint.step=4 continues' in line

  back = {'checkpoint__step': 4}
  with cluster.Cluster(tmp_path / 'run', **back) as run:
    assert run.wait() == [0, 0], run.log(0) + run.log(1)
    assert 'going back to step 4' in run.log(0)
    assert 'going back' not in run.log(1)
  assert (tmp_path / 'run' / checkpoint.ASIDE / '6').is_dir()
  assert [row['step'] for row in tiny.rows(tmp_path / 'run')] == [*range(1, 7)]

  # Requeued with the same command, a run goes on from what it has saved since.
  with cluster.Cluster(tmp_path / 'run', **back) as run:
    assert run.wait() == [0, 0], run.log(0) + run.log(1)
    assert f'resuming from {folder / "6"}' in run.log(0)
