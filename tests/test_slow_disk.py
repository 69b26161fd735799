"""A disk that takes a fifth of a second for each write."""

import shutil
import subprocess
import time

import pytest
import tiny


@pytest.fixture(scope='module')
def slow_disk(tmp_path_factory):
  """A library that makes one directory slow, to preload."""
  compiler = shutil.which('cc') or shutil.which('gcc')
  if compiler is None:
    pytest.skip('needs a C compiler')
  library = tmp_path_factory.mktemp('library') / 'slow_disk.so'
  source = tiny.ROOT / 'tests' / 'slow_disk.c'
  command = [compiler, '-shared', '-fPIC', '-o', library, source, '-ldl']
  subprocess.run(command, check=True)
  return library


@pytest.mark.slow
def test_steps_go_on_while_a_slow_disk_takes_a_checkpoint(tmp_path, slow_disk):
  process = subprocess.Popen(
    tiny.command(tmp_path, total_steps=400, checkpoint__every=100),
    env=tiny.environment()
    | {
      'LD_PRELOAD': str(slow_disk),
      'SLOW_DISK': str(tmp_path / 'checkpoints'),
      'SLOW_DISK_MS': '200',
    },
  )
  rows = []  # that were there when the first checkpoint was complete
  while process.poll() is None:
    if not rows and (tmp_path / 'checkpoints' / '100').exists():
      rows = tiny.rows(tmp_path)
    time.sleep(0.01)
  assert process.returncode == 0
  assert rows[-1]['step'] > 110
  assert tiny.rows(tmp_path)[-1]['step'] == 400
