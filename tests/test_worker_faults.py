"""Data workers that are killed or stopped."""

import os
import pathlib
import signal
import threading

import pytest
import tiny
from absl import flags

from ijepa_jax import errors, observe, train
from ijepa_jax.data import watch

# Far more than can be made of the batches that were read ahead.
STEPS = 40
FIELDS = {'total_steps': STEPS, 'checkpoint__every': 4}


@pytest.fixture(autouse=True)
def parsed_flags():
  """Grain's workers read absl flags, which only a program parses."""
  flags.FLAGS.mark_as_parsed()


def workers():
  """Grain's worker processes of this process."""
  return [
    int(path.name)
    for path in pathlib.Path('/proc').iterdir()
    if path.name.isdigit() and _is_worker(path)
  ]


def _is_worker(path):
  try:
    parent = (path / 'stat').read_text().rpartition(')')[2].split()[1]
    command = (path / 'cmdline').read_text()
  except OSError:
    return False
  return int(parent) == os.getpid() and 'spawn_main' in command


def strike(monkeypatch, number):
  """Sends a worker a signal when the run has made its fifth step."""
  go_on = observe.Observer.step

  def step(observer, step, values):
    go_on(observer, step, values)
    if step == 5:
      os.kill(workers()[0], number)

  monkeypatch.setattr(observe.Observer, 'step', step)


@pytest.mark.parametrize(
  ('number', 'said'),
  [
    (signal.SIGKILL, 'was killed by SIGKILL'),
    (signal.SIGSTOP, 'was stopped'),
  ],
)
def test_a_lost_worker_ends_the_run_and_it_continues(
  tmp_path, monkeypatch, number, said
):
  if number == signal.SIGSTOP:
    monkeypatch.setattr(watch, '_LOOKS_AT_STOPPED', 2)
  config = tiny.config(**FIELDS, data__workers=2)
  with monkeypatch.context() as until_lost:
    strike(until_lost, number)
    with pytest.raises(errors.LostProcess, match=said) as caught:
      train.train(config, tmp_path / 'a')
  assert caught.value.exit_code == 76
  assert workers() == []
  train.train(config, tmp_path / 'a')
  train.train(tiny.config(**FIELDS), tmp_path / 'b')
  tiny.assert_same_state(tmp_path / 'a', tmp_path / 'b', STEPS)


def test_workers_that_give_nothing_are_ended(monkeypatch):
  monkeypatch.setattr(watch, '_LOOK_SECONDS', 0.01)
  monkeypatch.setattr(watch, '_LOOKS_AT_NOTHING', 20)
  release = threading.Event()

  def forever():
    release.wait()
    yield 0

  watched = watch.Watched(forever())
  try:
    with pytest.raises(errors.LostProcess, match=r'data\.path'):
      next(watched)
  finally:
    release.set()
    watched.close()


def test_what_the_workers_made_arrives_in_order():
  watched = watch.Watched(iter(range(5)))
  assert list(watched) == [0, 1, 2, 3, 4]
  watched.close()


def test_an_error_that_is_not_of_a_dead_worker_stays_what_it_is():
  def broken():
    raise RuntimeError('a bug')
    yield

  watched = watch.Watched(broken())
  with pytest.raises(RuntimeError, match='a bug'):
    next(watched)
  watched.close()
