"""The cached list of a folder's images: used, dropped, rebuilt, survived."""

import os
import pathlib

import pytest

from ijepa_jax import errors
from ijepa_jax.data import folder_index

_LONG_AGO = 1_600_000_000


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> pathlib.Path:
  home = tmp_path_factory.mktemp('cache')
  monkeypatch.setenv('XDG_CACHE_HOME', str(home))
  return home


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
  for name in ('cat/1.png', 'cat/2.png', 'dog/3.png', 'empty/readme'):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
  _age(tmp_path)
  return tmp_path


def _age(root: pathlib.Path) -> None:
  """Makes the folders old enough to be remembered."""
  for folder, _, _ in os.walk(root):
    os.utime(folder, (_LONG_AGO, _LONG_AGO))


def _paths(root) -> list[str]:
  index = folder_index.index_folder(str(root))
  return [index.path(file).decode() for file in range(len(index))]


def _cached_files(cache: pathlib.Path) -> list[pathlib.Path]:
  return [path for path in cache.rglob('*') if path.is_file()]


_ALL = ['cat/1.png', 'cat/2.png', 'dog/3.png']


@pytest.fixture
def no_scan(monkeypatch):
  """From the moment it is called, listing a folder is a failure."""

  def forbid():
    def scan(path):
      raise AssertionError(f'listed {path}')

    monkeypatch.setattr(folder_index, '_list_folder', scan)

  return forbid


def test_second_start_lists_nothing(root, no_scan):
  assert _paths(root) == _ALL
  no_scan()
  assert _paths(root) == _ALL


def test_cached_index_equals_the_scanned_one(root):
  scanned = folder_index.index_folder(str(root))
  cached = folder_index.index_folder(str(root))
  assert cached.folders == scanned.folders == [b'', b'cat', b'dog', b'empty']
  assert cached.names == scanned.names
  assert cached.starts.tolist() == scanned.starts.tolist() == [0, 0, 2, 3, 3]
  assert cached.offsets.tolist() == scanned.offsets.tolist()


@pytest.mark.parametrize('name', ['cat/0.png', 'new/0.png', 'empty/0.png'])
def test_added_file_is_noticed(root, name):
  _paths(root)
  (root / name).parent.mkdir(exist_ok=True)
  (root / name).touch()
  assert _paths(root) == sorted([*_ALL, name])


def test_removed_and_renamed_files_are_noticed(root):
  _paths(root)
  (root / 'cat/1.png').unlink()
  (root / 'dog/3.png').rename(root / 'dog/4.png')
  assert _paths(root) == ['cat/2.png', 'dog/4.png']


def test_removed_folder_is_noticed(root):
  _paths(root)
  (root / 'dog/3.png').unlink()
  (root / 'dog').rmdir()
  os.utime(root, (_LONG_AGO, _LONG_AGO))  # even if its parent looks the same
  assert _paths(root) == ['cat/1.png', 'cat/2.png']


def test_folder_that_just_changed_is_not_remembered(root, cache):
  # The next change could come within the same tick of its clock.
  (root / 'cat/3.png').touch()
  _paths(root)
  assert _cached_files(cache) == []


@pytest.mark.parametrize('damage', ['cut', 'flip', 'empty', 'foreign'])
def test_damaged_cache_is_rebuilt(root, cache, damage):
  _paths(root)
  (file,) = _cached_files(cache)
  data = bytearray(file.read_bytes())
  good = bytes(data)
  data[-1] ^= 1
  changed = {
    'cut': good[: len(good) // 2],
    'flip': bytes(data),
    'empty': b'',
    'foreign': b'some other file\n',
  }
  file.write_bytes(changed[damage])
  assert _paths(root) == _ALL
  assert file.read_bytes() == good


def test_cache_is_private(root, cache):
  _paths(root)
  (file,) = _cached_files(cache)
  assert file.parent.stat().st_mode & 0o77 == 0


def test_unwritable_cache_is_a_warning(root, cache):
  (cache / 'ijepa_jax').touch()  # a file where the directory should be
  with pytest.warns(UserWarning, match='not kept'):
    assert _paths(root) == _ALL


def test_two_names_of_a_folder_share_a_cache(root, tmp_path_factory, no_scan):
  _paths(root)
  link = tmp_path_factory.mktemp('links') / 'link'
  link.symlink_to(root)
  no_scan()
  assert _paths(link) == _ALL


def test_order_is_depth_first_by_name(tmp_path):
  for name in ('b.png', 'a/z.png', 'a/b/1.png', 'a.x/1.png', 'a/c.png'):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  assert _paths(tmp_path) == [
    'b.png',
    'a/c.png',
    'a/z.png',
    'a/b/1.png',
    'a.x/1.png',
  ]


def test_pipe_named_like_an_image_is_left_out(tmp_path):
  os.mkfifo(tmp_path / 'a.png')  # reading it would wait for ever
  assert _paths(tmp_path) == []


def test_missing_folder_is_a_user_error(tmp_path):
  with pytest.raises(errors.UserError, match='cannot list'):
    _paths(tmp_path / 'gone')


@pytest.mark.skipif(os.geteuid() == 0, reason='root may list everything')
def test_unreadable_folder_is_a_user_error(root):
  (root / 'cat').chmod(0)
  with pytest.raises(errors.UserError, match=r'cannot list .*cat'):
    _paths(root)
