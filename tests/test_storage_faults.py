"""Disks that are full, read-only or slow, under the real loop."""

import asyncio
import contextlib
import errno
import gc
import os
import pathlib
import shutil
import subprocess
import tempfile

import numpy as np
import pytest
import tiny

from ijepa_jax import checkpoint, errors, orbax_noise, train

STEPS = 12


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('uninterrupted')
  train.train(tiny.config(total_steps=STEPS), workdir)
  return workdir


def mount(folder, options):
  return subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', str(folder)],
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.fixture
def disk(tmp_path):
  """An empty disk of its own; only root can make one."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  if os.geteuid() or shutil.which('mount') is None:
    pytest.skip('needs root, to mount a small tmpfs')
  mounted = mount(folder, 'size=16m')
  if mounted.returncode:  # as in a container, where root is not quite root
    pytest.skip(mounted.stderr)
  yield folder
  subprocess.run(['umount', '--lazy', str(folder)], check=True)


def test_a_full_disk_stops_the_run_and_it_continues_once_there_is_room(
  disk, uninterrupted, capfd
):
  config = tiny.config(total_steps=STEPS, checkpoint__keep=9)
  with pytest.raises(errors.StorageError) as caught:
    train.train(config, disk / 'run')
  message = str(caught.value)
  steps = sorted(
    int(path.name)
    for path in (disk / 'run' / 'checkpoints').iterdir()
    if path.name.isdigit()
  )
  assert steps
  assert f'last good step: {steps[-1]};' in message
  assert str(disk / 'run' / 'checkpoints') in message
  assert 'No space left' in message
  assert 'Traceback' not in capfd.readouterr().err
  # Noticed at once: not one more save was begun.
  assert len(tiny.rows(disk / 'run')) <= steps[-1] + 4
  assert mount(disk, 'remount,size=200m').returncode == 0
  train.train(config, disk / 'run')
  assert f'resuming from {disk}' in capfd.readouterr().err
  tiny.assert_same_run(disk / 'run', uninterrupted, STEPS)
  assert not list((disk / 'run' / 'checkpoints').glob('*tmp*'))


def test_whatever_the_disk_refuses_the_last_good_step_is_named(tmp_path):
  with contextlib.closing(
    checkpoint.Checkpoints(tmp_path, keep=2, keep_period=None)
  ) as checkpoints:
    full = OSError(errno.ENOSPC, 'No space left on device', 'curves.png')
    with (
      pytest.raises(errors.StorageError) as before,
      checkpoints.naming_last_good(),
    ):
      raise full
    checkpoints.save(3, {'w': np.zeros(1 << 22)}, {'config': {}})
    with (
      pytest.raises(errors.StorageError) as under_way,
      checkpoints.naming_last_good(),
    ):
      raise full
    with (
      pytest.raises(ValueError, match='ours'),
      checkpoints.naming_last_good(),
    ):
      raise ValueError('a bug of ours')
  line = 'cannot write curves.png: No space left on device; last good step: '
  assert str(before.value).startswith(line + 'none; mend that')
  assert str(under_way.value).startswith(line + '3; mend that')


def test_files_that_may_not_grow_end_the_command_with_code_74(tmp_path):
  command = tiny.command(tmp_path / 'run', total_steps=STEPS)
  result = subprocess.run(
    ['sh', '-c', 'ulimit -f 1024 && exec "$@"', 'sh', *command],
    env=tiny.environment(),
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert result.returncode == 74, result.stderr
  last = result.stderr.strip().splitlines()[-1]
  assert last.startswith('error: cannot save step 2 in '), result.stderr
  assert 'File too large; last good step: none' in last
  assert 'Traceback' not in result.stderr


@pytest.mark.parametrize(
  ('message', 'hidden'),
  [("Failed to write 5 bytes [os_error_code='27']", True), ('a bug', False)],
)
def test_writes_of_a_failed_save_that_nobody_awaits_are_not_told(
  message, hidden, caplog
):
  orbax_noise.silence()
  loop = asyncio.new_event_loop()
  write = loop.create_future()  # as TensorStore makes them, without a traceback
  write.set_exception(ValueError(message))
  del write
  gc.collect()
  loop.close()
  assert ('never retrieved' in caplog.text) is not hidden


@pytest.mark.parametrize(
  ('name', 'hidden'),
  [
    ('async_serialize_from_host.<locals>.write_fragment', True),
    ('ours.<locals>.write_fragment', False),
  ],
)
def test_writes_that_a_failed_save_never_began_are_not_told(
  name, hidden, recwarn
):
  async def write():
    pass

  orbax_noise.silence()
  write.__qualname__ = name
  begun = write()
  del begun
  gc.collect()
  assert bool(recwarn.list) is not hidden


def test_a_read_only_disk_is_told_before_training(disk):
  assert mount(disk, 'remount,ro').returncode == 0
  with pytest.raises(errors.UserError, match=f'{disk}.*Read-only file system'):
    train.train(tiny.config(), disk / 'run')


def test_a_folder_of_another_user_is_told_before_training():
  with tempfile.TemporaryDirectory() as folder:
    checkpoints = pathlib.Path(folder) / 'checkpoints'
    checkpoints.mkdir(mode=0o755)
    os.chmod(folder, 0o755)
    with another_user(checkpoints), pytest.raises(errors.StorageError) as told:
      checkpoint.Checkpoints(folder, keep=1, keep_period=None)
    assert f'cannot write to {checkpoints.resolve()}' in str(told.value)
    assert 'it belongs to user' in str(told.value)


@contextlib.contextmanager
def another_user(folder):
  """Makes the folder one that this process may not write to."""
  if os.geteuid():
    folder.chmod(0o555)
    yield
    return
  os.seteuid(65534)
  try:
    yield
  finally:
    os.seteuid(0)


def test_a_workdir_that_is_a_file_is_one_line(tmp_path):
  file = tmp_path / 'run'
  file.write_text('')
  with pytest.raises(errors.UserError, match='is a file; expected a directory'):
    train.train(tiny.config(), file)


def test_a_full_disk_is_one_line_wherever_it_comes_up(capsys):
  full = OSError(errno.ENOSPC, 'No space left on device', '/disk/file')
  with pytest.raises(SystemExit) as ended, errors.exit_cleanly():
    raise full
  assert ended.value.code == 74
  assert 'cannot write /disk/file: No space left' in capsys.readouterr().err
  with pytest.raises(FileNotFoundError), errors.exit_cleanly():
    raise FileNotFoundError(errno.ENOENT, 'a bug')
