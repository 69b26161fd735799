"""What a killed `prepare` leaves is used again; what is damaged is not."""

import contextlib
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from ijepa_jax import errors
from ijepa_jax.data import records
from ijepa_jax.prepare import __main__ as prepare

_IMAGES = 240
_SHARDS = 24


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))


@pytest.fixture(scope='module')
def src(tmp_path_factory) -> pathlib.Path:
  """Images of 300 kB, slow enough to be killed between; one is broken."""
  root = tmp_path_factory.mktemp('src')
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (320, 320, 3), dtype=np.uint8)
  for number in range(_IMAGES):
    file = io.BytesIO()
    Image.fromarray(np.roll(pixels, number, 0)).save(
      file, 'PNG', compress_level=0
    )
    path = root / 'ab'[number % 2] / f'{number}.png'
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(file.getvalue() if number != 7 else b'broken')
  return root


@pytest.fixture(scope='module')
def whole(src, tmp_path_factory) -> pathlib.Path:
  """Prepared without interruption."""
  dst = tmp_path_factory.mktemp('whole')
  prepare.main(_arguments(src, dst))
  return dst / 'train'


def _arguments(src, dst) -> list[str]:
  size = _IMAGES // _SHARDS
  return [str(src), str(dst), '--workers=2', f'--shard-size={size}']


def _content(directory: pathlib.Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in directory.iterdir()}


def _copy(whole, tmp_path) -> pathlib.Path:
  shutil.copytree(whole, tmp_path / 'dst' / 'train')
  return tmp_path / 'dst'


def _shards(directory: pathlib.Path) -> list[pathlib.Path]:
  return sorted(directory.glob('*.array_record'))


def _running(group: int) -> int:
  """How many processes of a process group run; the dead do not count."""
  count = 0
  for file in pathlib.Path('/proc').glob('[0-9]*/stat'):
    with contextlib.suppress(OSError):
      state, _, its_group = file.read_text().rpartition(')')[2].split()[:3]
      count += int(its_group) == group and state not in 'ZX'
  return count


def _kill(process: subprocess.Popen) -> None:
  """Kills the main process of a session; returns when its workers ended too."""
  process.send_signal(signal.SIGKILL)
  process.wait()
  deadline = time.monotonic() + 60
  while _running(process.pid):
    assert time.monotonic() < deadline
    time.sleep(0.05)


def test_killed_half_way_ends_as_if_never_killed(src, whole, tmp_path):
  dst = tmp_path / 'dst'
  command = [sys.executable, '-m', 'ijepa_jax.prepare', *_arguments(src, dst)]
  process = subprocess.Popen(
    command, stderr=subprocess.DEVNULL, start_new_session=True
  )
  notes = dst / 'train' / 'unfinished.jsonl'
  while not notes.exists() or len(notes.read_text().splitlines()) < 4:
    assert process.poll() is None
    time.sleep(0.005)
  _kill(process)
  assert not (dst / 'train' / 'manifest.json').exists()
  finished = [json.loads(x) for x in notes.read_text().splitlines()[1:]]
  kept = dst / 'train' / finished[0]['shard']['file']
  assert 3 <= len(finished) < _SHARDS
  before = kept.stat().st_mtime_ns
  prepare.main(_arguments(src, dst))
  assert _content(dst / 'train') == _content(whole)
  assert kept.stat().st_mtime_ns == before


@pytest.mark.skipif(not os.path.exists('/proc/self/stat'), reason='no /proc')
def test_workers_end_with_the_main_process(src, tmp_path):
  dst = tmp_path / 'dst'
  command = [sys.executable, '-m', 'ijepa_jax.prepare', *_arguments(src, dst)]
  process = subprocess.Popen(
    command, stderr=subprocess.DEVNULL, start_new_session=True
  )
  while not _shards(dst / 'train'):
    assert process.poll() is None
    time.sleep(0.005)
  assert _running(process.pid) >= 3
  _kill(process)


def test_ctrl_c_is_one_line_and_exit_code_75(src, tmp_path):
  dst = tmp_path / 'dst'
  command = [sys.executable, '-m', 'ijepa_jax.prepare', *_arguments(src, dst)]
  process = subprocess.Popen(
    command,
    stderr=subprocess.PIPE,
    text=True,
    # Tests in the background of a shell inherit that Ctrl-C is ignored.
    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
  )
  while not _shards(dst / 'train'):
    assert process.poll() is None
    time.sleep(0.005)
  process.send_signal(signal.SIGINT)
  _, output = process.communicate(timeout=30)
  assert process.returncode == errors.Interrupted.exit_code
  assert 'Traceback' not in output
  assert output.splitlines()[-1].startswith('error: interrupted')


def test_finished_one_is_checked_and_left_alone(src, whole, tmp_path):
  dst = _copy(whole, tmp_path)
  before = [path.stat().st_mtime_ns for path in _shards(dst / 'train')]
  prepare.main(_arguments(src, dst))
  assert [p.stat().st_mtime_ns for p in _shards(dst / 'train')] == before
  assert _content(dst / 'train') == _content(whole)


@pytest.mark.parametrize('damage', ['missing', 'cut', 'flip'])
def test_damaged_shard_is_written_again(src, whole, tmp_path, damage):
  dst = _copy(whole, tmp_path)
  shard = _shards(dst / 'train')[3]
  data = bytearray(shard.read_bytes())
  if damage == 'missing':
    shard.unlink()
  elif damage == 'cut':
    shard.write_bytes(data[:-1])
  else:
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
  prepare.main(_arguments(src, dst))
  assert _content(dst / 'train') == _content(whole)


def test_half_written_note_is_ignored(src, whole, tmp_path):
  dst = _copy(whole, tmp_path)
  manifest = json.loads((dst / 'train/manifest.json').read_text())
  row = json.dumps({'shard': manifest['shards'][0], 'bad_files': []})
  plan = json.dumps({'plan': manifest['plan']})
  (dst / 'train/unfinished.jsonl').write_text(f'{plan}\n{row}\n{row[:20]}')
  (dst / 'train/manifest.json').unlink()
  prepare.main(_arguments(src, dst))
  assert _content(dst / 'train') == _content(whole)


def test_killed_while_recoding_ends_as_if_never_killed(src, tmp_path):
  small = '--short-side=64'
  prepare.main([*_arguments(src, tmp_path / 'whole'), small])
  dst = tmp_path / 'dst'
  command = [sys.executable, '-m', 'ijepa_jax.prepare', *_arguments(src, dst)]
  process = subprocess.Popen(
    [*command, small], stderr=subprocess.DEVNULL, start_new_session=True
  )
  while len(_shards(dst / 'train')) < 3:
    assert process.poll() is None
    time.sleep(0.005)
  _kill(process)
  assert not (dst / 'train' / 'manifest.json').exists()
  prepare.main([*_arguments(src, dst), small])
  assert _content(dst / 'train') == _content(tmp_path / 'whole' / 'train')


@pytest.mark.parametrize(
  'option', ['--seed=1', '--shard-size=7', '--short-side=64']
)
def test_other_options_are_refused(src, whole, tmp_path, option):
  dst = _copy(whole, tmp_path)
  with pytest.raises(errors.UserError, match='other options'):
    prepare.main([*_arguments(src, dst), option])
  assert _content(dst / 'train') == _content(whole)


def test_directory_of_somebody_else_is_refused(src, tmp_path):
  (tmp_path / 'train').mkdir()
  (tmp_path / 'train/precious.txt').touch()
  with pytest.raises(errors.UserError, match='not of our making'):
    prepare.main(_arguments(src, tmp_path))


def test_open_names_a_missing_shard(whole, tmp_path):
  dst = _copy(whole, tmp_path)
  shard = _shards(dst / 'train')[2]
  shard.unlink()
  with pytest.raises(errors.UserError, match=f'{shard.name} is missing'):
    records.RecordsSource(str(dst), 'train')


def test_open_names_a_shard_of_the_wrong_size(whole, tmp_path):
  dst = _copy(whole, tmp_path)
  shard = _shards(dst / 'train')[2]
  shard.write_bytes(shard.read_bytes()[:-1])
  with pytest.raises(errors.UserError, match=f'{shard.name} has'):
    records.RecordsSource(str(dst), 'train')


def test_damaged_record_is_an_oserror(whole, tmp_path):
  dst = _copy(whole, tmp_path)
  for shard in _shards(dst / 'train'):
    data = bytearray(shard.read_bytes())
    data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 4)
    shard.write_bytes(data)
  source = records.RecordsSource(str(dst), 'train')
  failed = []
  for index in range(len(source)):
    try:
      source[index]
    except OSError:
      failed.append(source.record_id(index))
  assert 'record 5' in failed


def test_open_without_manifest_names_prepare(tmp_path):
  with pytest.raises(errors.UserError, match=r'ijepa_jax\.prepare SRC'):
    records.RecordsSource(str(tmp_path), 'train')


def test_open_with_unknown_split_names_those_there_are(whole):
  with pytest.raises(errors.UserError, match="has the splits 'train'"):
    records.RecordsSource(str(whole.parent), 'val')


@pytest.mark.parametrize('text', ['', '[]', '{"format": "other"}'])
def test_open_with_damaged_manifest(whole, tmp_path, text):
  dst = _copy(whole, tmp_path)
  (dst / 'train/manifest.json').write_text(text)
  with pytest.raises(errors.UserError, match=r'manifest\.json'):
    records.RecordsSource(str(dst), 'train')
