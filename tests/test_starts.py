"""starts.jsonl and the text files that are written whole."""

import contextlib
import json
import resource

import pytest

from ijepa_jax import atomic, errors, starts


@contextlib.contextmanager
def files_of_at_most(size):
  """Like a full disk: a write that goes on past `size` bytes is cut there."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def steps_of(workdir):
  lines = (workdir / 'starts.jsonl').read_text().splitlines()
  return [json.loads(line)['step'] for line in lines]


def test_a_start_without_room_leaves_no_half_line(tmp_path):
  starts.record(tmp_path, {'step': 0})
  size = (tmp_path / 'starts.jsonl').stat().st_size
  with (
    files_of_at_most(size + 40),
    pytest.raises(errors.StorageError, match=r'starts.jsonl: File too large'),
  ):
    starts.record(tmp_path, {'step': 10})
  assert steps_of(tmp_path) == [0]
  assert not list(tmp_path.glob('*.tmp'))
  starts.record(tmp_path, {'step': 10})
  assert steps_of(tmp_path) == [0, 10]


def test_a_half_line_of_an_earlier_start_is_dropped(tmp_path):
  starts.record(tmp_path, {'step': 0})
  with open(tmp_path / 'starts.jsonl', 'a') as file:
    file.write('{"time": 17')
  starts.record(tmp_path, {'step': 10})
  assert steps_of(tmp_path) == [0, 10]


def test_below_a_file_nothing_is_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.StorageError, match=r'x.html: Not a directory'):
    atomic.write_text(tmp_path / 'file' / 'x.html', 'x')
