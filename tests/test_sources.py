"""`data.source` to images: folders, and what is said when nothing fits."""

import io
import os
import pathlib
import pickle
import subprocess
import sys

import pytest
from PIL import Image

from ijepa_jax import errors
from ijepa_jax.data import decode, folder, sources, transforms


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))


def _png(colour='red') -> bytes:
  buffer = io.BytesIO()
  Image.new('RGB', (4, 3), colour).save(buffer, 'PNG')
  return buffer.getvalue()


def _files(root: pathlib.Path, *names: str) -> str:
  for name in names:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(_png())
  return str(root)


def _open(path, split='train', source='folder'):
  return sources.open_source(source, path, split, image_size=16, seed=0)


def _ids(source) -> list[str]:
  return [source.record_id(index) for index in range(len(source))]


def _labels(source) -> list[int]:
  return [source[index]['labels']['label'] for index in range(len(source))]


def test_flat_folder_is_train_without_labels(tmp_path):
  source = _open(_files(tmp_path, 'b.png', 'a.jpg', 'c.JPEG', 'd.TIF'))
  assert _ids(source) == ['a.jpg', 'b.png', 'c.JPEG', 'd.TIF']
  assert source.labels == {}
  assert source[0] == {'image': _png(), 'labels': {}}
  assert source.epoch_length == len(source) == 4


def test_png_named_jpg_decodes(tmp_path):
  source = _open(_files(tmp_path, 'a.jpg'))
  assert decode.decode(source[0]['image']).size == (4, 3)


def test_class_folders_are_labels(tmp_path):
  source = _open(_files(tmp_path, 'dog/1.png', 'cat/1.png', 'cat/2.png'))
  assert source.classes == ['cat', 'dog']
  assert source.labels == {'label': 2}
  assert _ids(source) == ['cat/1.png', 'cat/2.png', 'dog/1.png']
  assert _labels(source) == [0, 0, 1]


def test_label_is_the_first_level_that_varies_at_any_depth(tmp_path):
  path = _files(tmp_path, 'all/in/cat/1.png', 'all/in/dog/young/x/1.png')
  assert _labels(_open(path)) == [0, 1]


def test_image_beside_class_folders_means_no_labels(tmp_path):
  source = _open(_files(tmp_path, 'cat/1.png', 'dog/1.png', 'stray.png'))
  assert source.labels == {}
  assert len(source) == 3


def test_splits_are_sub_folders_with_the_same_labels(tmp_path):
  path = _files(
    tmp_path, 'train/cat/1.png', 'train/dog/1.png', 'val/dog/2.png', 'no.png'
  )
  assert _ids(_open(path)) == ['train/cat/1.png', 'train/dog/1.png']
  val = _open(path, 'val')
  assert _ids(val) == ['val/dog/2.png']
  assert _labels(val) == [1]  # dog, although val has no cat
  assert val.labels == {'label': 2}


def test_flat_split_beside_labelled_one(tmp_path):
  path = _files(tmp_path, 'train/a/1.png', 'train/b/1.png', 'test/1.png')
  assert _open(path, 'train').labels == {'label': 2}
  assert _open(path, 'test').labels == {}


def test_splits_below_a_common_folder(tmp_path):
  path = _files(tmp_path, 'set/train/a/1.png', 'set/test/a/2.png')
  assert _ids(_open(path, 'test')) == ['set/test/a/2.png']


def test_hidden_and_other_files_are_not_images(tmp_path):
  path = _files(tmp_path, 'a.png', '._a.png', '.git/b.png', 'c.txt', 'png')
  assert _ids(_open(path)) == ['a.png']


def test_file_name_that_is_not_utf8(tmp_path):
  (tmp_path / os.fsdecode(b'\xff.png')).write_bytes(_png())
  source = _open(str(tmp_path))
  assert source[0]['image'] == _png()
  assert source.record_id(0) == '\\xff.png'


def test_symlinks_are_followed_and_loops_end(tmp_path):
  path = _files(tmp_path / 'data', 'cat/1.png')
  _files(tmp_path / 'elsewhere', '2.png')
  (tmp_path / 'data/dog').symlink_to(tmp_path / 'elsewhere')
  (tmp_path / 'data/cat/up').symlink_to(tmp_path / 'data')
  (tmp_path / 'data/cat/one').symlink_to(tmp_path / 'data/cat/1.png')
  assert _ids(_open(path)) == ['cat/1.png', 'dog/2.png']


def test_removed_file_is_an_oserror(tmp_path):
  source = _open(_files(tmp_path, 'a.png', 'b.png'))
  (tmp_path / 'a.png').unlink()
  with pytest.raises(OSError, match='No such file'):
    source[0]


@pytest.mark.parametrize('index', [-1, 2])
def test_index_out_of_range(tmp_path, index):
  source = _open(_files(tmp_path, 'a.png', 'b.png'))
  with pytest.raises(IndexError):
    source[index]


def test_pickled_source_reads_the_same(tmp_path):
  source = _open(_files(tmp_path, 'cat/1.png', 'dog/1.png'))
  copy = pickle.loads(pickle.dumps(source))
  assert copy[1] == source[1]
  assert copy.fingerprint == source.fingerprint


def test_fingerprint_stays_when_moved_and_changes_with_the_files(tmp_path):
  path = _files(tmp_path / 'old', 'cat/1.png', 'dog/1.png')
  before = _open(path).fingerprint
  (tmp_path / 'old').rename(tmp_path / 'new')
  assert _open(str(tmp_path / 'new')).fingerprint == before
  _files(tmp_path / 'new', 'dog/2.png')
  assert _open(str(tmp_path / 'new')).fingerprint != before


def test_fingerprints_of_splits_differ(tmp_path):
  path = _files(tmp_path, 'train/a/1.png', 'test/a/1.png')
  assert _open(path).fingerprint != _open(path, 'test').fingerprint


def test_broken_file_is_replaced_by_its_neighbour(tmp_path):
  path = _files(tmp_path, 'a.png', 'b.png')
  (tmp_path / 'a.png').write_bytes(b'')
  loaded = transforms.load(
    _open(path), 0, transforms.EvalTransform(8), rng=None
  )
  assert (loaded.index, loaded.bad) == (1, 1)


@pytest.mark.parametrize(
  ('folders', 'splits', 'classes', 'labels'),
  [
    ([''], {'': [0]}, [], [-1]),
    (['a'], {'': [0]}, [], [-1]),
    (['a', 'b'], {'': [0, 1]}, ['a', 'b'], [0, 1]),
    (['x/a', 'x/b/c'], {'': [0, 1]}, ['a', 'b'], [0, 1]),
    (['train/a', 'z'], {'train': [0]}, [], [-1, -1]),
    (['train'], {'train': [0]}, [], [-1]),
  ],
)
def test_layout(folders, splits, classes, labels):
  assert folder.read_layout(folders) == folder.Layout(splits, classes, labels)


def _message(call, *args) -> str:
  with pytest.raises(errors.UserError) as info:
    call(*args)
  message = str(info.value)
  assert len(message.splitlines()) == 1
  assert info.value.exit_code == 2
  return message


def test_unknown_source_names_the_nearest():
  assert "did you mean 'folder'?" in _message(_open, '/', 'train', 'folders')


@pytest.mark.parametrize('path', [None, ''])
def test_no_path(path):
  assert 'data.path is not set' in _message(_open, path)


def test_missing_path_names_the_nearest(tmp_path):
  path = _files(tmp_path / 'images', 'a.png')
  message = _message(_open, str(tmp_path / 'imgaes' / 'deeper'))
  assert f'did you mean {path}?' in message


def test_path_of_a_file_names_prepare(tmp_path):
  path = os.path.join(_files(tmp_path, 'a.png'), 'a.png')
  assert 'ijepa_jax.prepare' in _message(_open, path)


def test_folder_without_images(tmp_path):
  (tmp_path / 'notes.txt').touch()
  assert 'no images below' in _message(_open, str(tmp_path))


def test_unknown_split_names_those_there_are(tmp_path):
  path = _files(tmp_path, 'train/a.png', 'test/a.png')
  assert "has the splits 'test', 'train'" in _message(_open, path, 'val')


def test_split_of_a_folder_without_splits(tmp_path):
  path = _files(tmp_path, 'a.png')
  assert "all of it is 'train'" in _message(_open, path, 'val')


def test_scenes_are_a_source():
  source = _open(None, 'train', 'scenes')
  assert source[0]['image'].shape == (16, 16, 3)


def test_data_imports_neither_jax_nor_tensorflow(tmp_path):
  code = (
    'import sys\n'
    'from ijepa_jax.data import decode, folder, records, sources, transforms\n'
    'from ijepa_jax.data import tfds\n'
    'from ijepa_jax.prepare import run\n'
    'bad = {"jax", "tensorflow", "torch"} & set(sys.modules)\n'
    'assert not bad, bad\n'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
