"""The lock of a run's directory."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import tiny

from ijepa_jax import errors, workdir

HOLD = """
  import pathlib, sys, time
  from ijepa_jax import workdir
  with workdir.Lock(pathlib.Path(sys.argv[1])):
    print('held', flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
  process = subprocess.Popen(
    [sys.executable, '-c', textwrap.dedent(HOLD), str(tmp_path)],
    env=tiny.environment(),
    stdout=subprocess.PIPE,
  )
  assert process.stdout.readline() == b'held\n'
  yield process
  process.kill()
  process.wait()
  process.stdout.close()


@pytest.fixture
def quick(monkeypatch):
  """Beats often; is patient where a beat is expected."""
  monkeypatch.setattr(workdir, '_BEAT_SECONDS', 0.05)
  monkeypatch.setattr(workdir, '_WATCH_SECONDS', 30.0)


@pytest.fixture
def impatient(quick, monkeypatch):
  monkeypatch.setattr(workdir, '_WATCH_SECONDS', 0.3)


def move_to_another_host(monkeypatch):
  """As a container moves, which keeps its name."""
  monkeypatch.setattr(workdir, '_boot', lambda: 'another')


def take(folder):
  with workdir.Lock(folder):
    return json.loads((folder / workdir.LOCK).read_text())


def test_the_second_run_is_refused_and_told_who_has_it(tmp_path, holder):
  with pytest.raises(errors.UserError) as told:
    take(tmp_path)
  other = json.loads((tmp_path / workdir.LOCK).read_text())
  for part in (other['host'], str(holder.pid), other['started']):
    assert part in str(told.value)
  assert told.value.exit_code == 2


def test_a_killed_run_leaves_the_directory_to_the_next_at_once(
  tmp_path, holder, capsys
):
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  begin = time.monotonic()
  assert take(tmp_path)['pid'] == os.getpid()
  assert time.monotonic() - begin < workdir._WATCH_SECONDS
  assert capsys.readouterr().err == ''


def test_two_locks_in_turn(tmp_path):
  for _ in range(2):
    assert take(tmp_path)['pid'] == os.getpid()
  assert (tmp_path / workdir.LOCK).read_bytes() == b''


def test_a_live_run_of_another_host_is_seen_without_locks(
  tmp_path, quick, monkeypatch
):
  """As on a file system whose locks do not reach other hosts."""
  with workdir.Lock(tmp_path):
    move_to_another_host(monkeypatch)
    monkeypatch.setattr(workdir.fcntl, 'flock', lambda *_: None)
    with pytest.raises(errors.UserError, match='in use by a run on host'):
      take(tmp_path)


@pytest.mark.parametrize('started', ['2001-01-01 00:00', '2101-01-01 00:00'])
def test_a_dead_run_of_another_host_does_not_block_whatever_its_clock(
  tmp_path, impatient, started
):
  leave_a_lock(tmp_path, started=started)
  assert take(tmp_path)['pid'] == os.getpid()


def leave_a_lock(folder, started='2001-01-01 00:00'):
  """As a host leaves it that is gone."""
  stale = {'host': 'gone', 'boot': 'gone', 'pid': 1, 'started': started}
  (folder / workdir.LOCK).write_text(json.dumps({**stale, 'beat': 7}) + '\n')


def test_a_lock_that_the_server_keeps_of_a_dead_host_is_waited_for(
  tmp_path, impatient, monkeypatch
):
  answers = iter([False, False, True])
  monkeypatch.setattr(workdir.Lock, '_flock', lambda _: next(answers))
  leave_a_lock(tmp_path)
  assert take(tmp_path)['pid'] == os.getpid()
  assert next(answers, None) is None


def test_a_lock_that_is_never_given_back_is_refused(
  tmp_path, impatient, monkeypatch
):
  monkeypatch.setattr(workdir, '_LEASE_SECONDS', 0.5)
  monkeypatch.setattr(workdir.Lock, '_flock', lambda _: False)
  leave_a_lock(tmp_path)
  with pytest.raises(errors.UserError, match='in use by a run on host gone'):
    take(tmp_path)


def test_a_live_run_of_another_host_that_has_the_lock_is_refused(
  tmp_path, quick, monkeypatch
):
  with workdir.Lock(tmp_path):
    move_to_another_host(monkeypatch)
    with pytest.raises(errors.UserError, match='in use by a run on host'):
      take(tmp_path)


def test_without_any_locks_the_count_decides(tmp_path, quick, monkeypatch):
  def refuse(*_):
    raise OSError(37, 'No locks available')

  monkeypatch.setattr(workdir.fcntl, 'flock', refuse)
  with (
    workdir.Lock(tmp_path),
    pytest.raises(errors.UserError, match='in use by'),
  ):
    take(tmp_path)
  assert take(tmp_path)['pid'] == os.getpid()


def test_directories_are_for_their_owner_alone(tmp_path):
  workdir.make(tmp_path / 'a' / 'run')
  assert (tmp_path / 'a' / 'run').stat().st_mode & 0o077 == 0


def test_the_command_refuses_a_workdir_in_use_with_exit_code_2(
  tmp_path, holder
):
  result = tiny.run(tmp_path)
  assert result.returncode == 2, result.stderr
  last = result.stderr.strip().splitlines()[-1]
  assert f'process {holder.pid}' in last
  assert 'Traceback' not in result.stderr
  assert not (tmp_path / 'checkpoints').exists()
