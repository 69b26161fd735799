"""`python -m ijepa_jax.extract`: features of a folder in one file."""

import errno
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import small_weights
import tiny
from PIL import Image

import ijepa_jax
from ijepa_jax import checkpoint as checkpoints
from ijepa_jax import errors, extract, feature_files

_NAMES = [f'{name}/{k}.png' for name in ('cat', 'dog') for k in range(4)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp('weights') / 'tiny'
  return small_weights.write(small_weights.single(), path, 'flax')


@pytest.fixture
def images(tmp_path) -> pathlib.Path:
  return _folder(tmp_path / 'images', _NAMES)


def _folder(root: pathlib.Path, names) -> pathlib.Path:
  for name in names:
    rng = np.random.default_rng(list(name.encode()))
    size = (*rng.integers(10, 30, 2), 3)
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(path)
  return root


def _extract(checkpoint, images, *options: str, out='out.npz') -> pathlib.Path:
  """Runs the command; returns the file."""
  path = images.parent / out
  flags = [f'--checkpoint={checkpoint}', f'--images={images}', f'--out={path}']
  extract.main([*flags, *options])
  return path


def _load(path: pathlib.Path) -> dict[str, np.ndarray]:
  with np.load(path, allow_pickle=False) as arrays:
    return dict(arrays)


def _one_by_one(checkpoint, images, names, **options) -> np.ndarray:
  """The same `(n, N, D)` by `load_encoder`."""
  encoder = ijepa_jax.load_encoder(str(checkpoint), **options)
  rows = [
    encoder(encoder.preprocess(Image.open(images / name)))[0] for name in names
  ]
  return np.stack(rows)


def _close(a, b):
  np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize('batch_size', [1, 3, 8, 64])
def test_features_are_those_of_the_encoder(batch_size, checkpoint, images):
  out = _load(_extract(checkpoint, images, f'--batch-size={batch_size}'))
  assert sorted(out) == ['bad_files', 'classes', 'features', 'labels', 'names']
  assert out['names'].tolist() == _NAMES
  assert out['classes'].tolist() == ['cat', 'dog']
  assert out['labels'].tolist() == [0] * 4 + [1] * 4
  assert out['bad_files'].tolist() == []
  assert out['features'].dtype == np.float32
  _close(out['features'], _one_by_one(checkpoint, images, _NAMES).mean(1))
  # Otherwise the comparison would say nothing.
  assert out['features'].std(0).min() > 1e-3


def test_all_patches(checkpoint, images):
  out = _load(_extract(checkpoint, images, '--pool=none', '--batch-size=3'))
  assert out['features'].shape == (8, 9, 44)
  _close(out['features'], _one_by_one(checkpoint, images, _NAMES))


def test_another_image_size(checkpoint, images):
  out = _load(_extract(checkpoint, images, '--image-size=20'))
  alone = _one_by_one(checkpoint, images, _NAMES, image_size=20)
  _close(out['features'], alone.mean(1))


@pytest.mark.parametrize('pool', ['mean', 'none'])
def test_layers(pool, checkpoint, images):
  last = _load(_extract(checkpoint, images, f'--pool={pool}'))['features']
  arguments = (f'--pool={pool}', '--layers=-1,0,2')
  out = _load(_extract(checkpoint, images, *arguments, out='layers.npz'))
  assert out['layers'].tolist() == [-1, 0, 2]
  assert out['features'].shape == (8, 3, *last.shape[1:])
  _close(out['features'][:, 0], last)
  _close(out['features'][:, 2], last)
  assert np.abs(out['features'][:, 1] - last).max() > 1e-2


def test_which_encoder(images, tmp_path):
  held = small_weights.full()
  both = small_weights.write(held, tmp_path / 'both', 'orbax')
  for which in ('target', 'context'):
    out = _extract(both, images, f'--which={which}', out=f'{which}.npz')
    alone = _one_by_one(both, images, _NAMES, which=which).mean(1)
    _close(_load(out)['features'], alone)


def test_bad_files_are_listed_and_others_unaffected(checkpoint, images, capsys):
  whole = _load(_extract(checkpoint, images))
  (images / 'cat' / '1.png').write_bytes(b'')
  (images / 'dog' / '3.png').write_bytes(b'not an image')
  (images / 'dog' / 'gone.png').symlink_to(images / 'nowhere')
  capsys.readouterr()
  out = _load(_extract(checkpoint, images, '--batch-size=3', out='b.npz'))
  bad = ['cat/1.png', 'dog/3.png', 'dog/gone.png']
  assert out['bad_files'].tolist() == bad
  left = [name for name in _NAMES if name not in bad]
  assert out['names'].tolist() == left
  assert out['labels'].tolist() == [0] * 3 + [1] * 3
  rows = [_NAMES.index(name) for name in left]
  _close(out['features'], whole['features'][rows])
  said = capsys.readouterr().err
  assert '3 files cannot be read' in said
  assert 'cat/1.png: empty file' in said


def test_all_splits_are_taken(checkpoint, tmp_path):
  names = ['other/a.png', 'train/cat/a.png', 'train/dog/a.png', 'val/cat/b.png']
  images = _folder(tmp_path / 'images', names)
  out = _load(_extract(checkpoint, images))
  assert out['names'].tolist() == names
  assert out['classes'].tolist() == ['cat', 'dog']
  assert out['labels'].tolist() == [-1, 0, 1, 0]


@pytest.mark.parametrize(
  ('names', 'classes', 'labels'),
  [
    (['a', 'cat/a', 'cat/b', 'dog/a'], ['cat', 'dog'], [-1, 0, 0, 1]),
    (['a', 'cat/a', 'cat/b'], ['cat'], [-1, 0, 0]),
    (['a', 'cat/a', 'cat/old/b'], ['cat'], [-1, 0, 0]),
    (['in/a', 'in/cat/a'], ['cat'], [-1, 0]),
    (['train/a', 'train/cat/a', 'val/cat/a'], ['cat'], [-1, 0, 0]),
    (['train/cat/a', 'val/cat/a'], [], [-1, -1]),
    (['a', 'train/a', 'val/a'], [], [-1, -1, -1]),
    (['cat/a', 'cat/b'], [], [-1, -1]),
    (['cat/old/a'], [], [-1]),
    (['a'], [], [-1]),
  ],
)
def test_images_outside_of_the_class_folders_have_no_label(
  names, classes, labels, tmp_path
):
  for name in names:
    path = tmp_path / 'images' / f'{name}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  found = extract.find_images(str(tmp_path / 'images'))
  files = range(len(names))
  assert [found.name(file) for file in files] == [f'{x}.png' for x in names]
  assert found.classes == classes
  assert found.labels.tolist() == labels
  assert found.labels.dtype == np.int32


@pytest.mark.parametrize('suffix', ['npz', 'parquet'])
def test_names_that_are_not_utf8(suffix, checkpoint, images):
  folder = os.path.join(os.fsencode(images), b'caf\xe9')
  os.mkdir(folder)
  (images / 'cat' / '0.png').rename(os.fsdecode(folder + b'/\xe9.png'))
  if suffix == 'npz':
    out = _load(_extract(checkpoint, images))
    classes, names = out['classes'].tolist(), out['names'].tolist()
  else:
    parquet = pytest.importorskip('pyarrow.parquet')
    table = parquet.read_table(_extract(checkpoint, images, out='out.parquet'))
    classes = json.loads(table.schema.metadata[b'classes'])
    names = table.to_pydict()['name']
  assert classes == ['caf\\xe9', 'cat', 'dog']
  assert names[0] == 'caf\\xe9/\\xe9.png'


def test_no_classes(checkpoint, tmp_path):
  images = _folder(tmp_path / 'images', ['a.png', 'ü.png'])
  out = _load(_extract(checkpoint, images))
  assert sorted(out) == ['bad_files', 'features', 'names']
  assert out['names'].tolist() == ['a.png', 'ü.png']


def test_one_is_singular(checkpoint, tmp_path, capsys):
  images = _folder(tmp_path / 'images', ['a.png'])
  (images / 'b.png').touch()
  _extract(checkpoint, images)
  said = capsys.readouterr()
  assert '1 file cannot be read, see bad_files; the first: b.png' in said.err
  assert ': 1 image, features of 44\n' in said.out


@pytest.mark.parametrize('options', [(), ('--pool=none', '--layers=0,-1')])
def test_parquet_holds_the_same(options, checkpoint, images, monkeypatch):
  parquet = pytest.importorskip('pyarrow.parquet')
  # Several row groups.
  monkeypatch.setattr(feature_files, '_ROW_GROUP_BYTES', 3 * 44 * 4)
  (images / 'alone.png').write_bytes((images / _NAMES[0]).read_bytes())
  (images / 'bad.png').write_bytes(b'bad')
  arrays = _load(_extract(checkpoint, images, *options))
  path = _extract(checkpoint, images, *options, out='out.parquet')
  file = parquet.ParquetFile(path)
  assert file.num_row_groups > 1
  table = file.read()
  assert table.column_names == ['name', 'label', 'class', 'feature']
  columns = table.to_pydict()
  assert columns['name'] == arrays['names'].tolist()
  assert columns['label'] == [None] + [0] * 4 + [1] * 4
  assert columns['class'] == [None] + ['cat'] * 4 + ['dog'] * 4
  features = np.array(columns['feature'], np.float32)
  np.testing.assert_array_equal(features, arrays['features'])
  metadata = table.schema.metadata
  assert json.loads(metadata[b'bad_files']) == ['bad.png']
  assert json.loads(metadata[b'classes']) == ['cat', 'dog']
  assert (b'layers' in metadata) == bool(options)


def test_nothing_is_left_behind(checkpoint, images, monkeypatch):
  def fail(path, held):
    pathlib.Path(path).write_bytes(b'half')
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setitem(feature_files._WRITERS, '.npz', fail)
  with pytest.raises(errors.StorageError, match='No space left'):
    _extract(checkpoint, images)
  left = {path.name for path in images.parent.iterdir()}
  assert left <= {'images', 'cache'}


def test_parquet_without_pyarrow(checkpoint, images, monkeypatch):
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  with pytest.raises(errors.UserError, match='parquet'):
    _extract(checkpoint, images, out='out.parquet')


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (['--layers=3'], '--layers=3: expected numbers from -3 to 2'),
    (['--layers=0,-4'], '--layers=0,-4: expected numbers'),
    (['--layers=last'], '--layers=last: expected numbers'),
    (['--layers='], '--layers=: expected numbers'),
    (['--out=a.csv'], 'expected a name that ends in .npz or .parquet'),
    (['--out=a'], 'expected a name that ends in .npz or .parquet'),
    (['--images=nowhere'], '--images: .*nowhere does not exist'),
    (['--images=EMPTY'], '--images: no images below .*EMPTY'),
    (['--images=FILE'], '--images: .*FILE is a file, expected a folder'),
    (['--images=BAD'], 'none can be read; the first of 1 image: a.png: empty'),
    (['--checkpoint=EMPTY'], '--checkpoint: .*EMPTY holds no weights'),
    (['--checkpoint=nowhere'], '--checkpoint: .*nowhere does not exist'),
    (['--image-size=13'], 'image_size=13: expected a multiple'),
    (['--image-size=0'], '--image-size: 0 is not at least 1'),
    (['--heads=-2'], '--heads: -2 is not at least 1'),
  ],
)
def test_errors(options, message, checkpoint, images, monkeypatch):
  monkeypatch.chdir(images.parent)
  pathlib.Path('EMPTY').mkdir()
  pathlib.Path('BAD').mkdir()
  pathlib.Path('FILE').touch()
  pathlib.Path('BAD/a.png').touch()
  before = {path for path in images.parent.iterdir() if path.name != 'cache'}
  with pytest.raises(errors.UserError, match=message) as error:
    _extract(checkpoint, images, *options)
  assert '\n' not in str(error.value)
  after = {path for path in images.parent.iterdir() if path.name != 'cache'}
  assert after == before


def test_an_existing_file_is_kept(checkpoint, images):
  out = images.parent / 'out.npz'
  out.write_bytes(b'mine')
  with pytest.raises(errors.UserError, match='exists; choose another name'):
    _extract(checkpoint, images)
  assert out.read_bytes() == b'mine'


@pytest.fixture
def run(tmp_path) -> pathlib.Path:
  """A checkpoint as a run saves it."""
  held = small_weights.full()
  converted = small_weights.write(held, tmp_path / 'weights', 'orbax')
  meta = json.loads((converted / 'meta' / 'metadata').read_text())
  saver = checkpoints.Checkpoints(tmp_path / 'run', keep=1, keep_period=None)
  saver.save(7, {'target': held.target.tree()}, meta)
  saver.close()
  return tmp_path / 'run'


def test_command_line(run, images):
  out = images.parent / 'new' / 'out.npz'
  command = [
    *(sys.executable, '-m', 'ijepa_jax.extract'),
    *(f'--checkpoint={run}', f'--images={images}', f'--out={out}'),
  ]

  def execute():
    return subprocess.run(
      command,
      env=tiny.environment(),
      capture_output=True,
      text=True,
      timeout=300,
      check=False,
    )

  done = execute()
  assert done.returncode == 0, done.stderr
  assert done.stdout.endswith('out.npz: 8 images, features of 44\n')
  # Progress and nothing else, such as warnings of Orbax.
  lines = done.stderr.splitlines()
  assert all(line.startswith('features: ') for line in lines if line)
  assert 'features: 8 of 8 images' in lines[-1]
  assert ' per second' in lines[-1]
  again = execute()
  assert again.returncode == 2
  assert again.stderr.startswith('error: --out: ')
  assert again.stderr.count('\n') == 1
