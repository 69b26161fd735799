"""`python -m ijepa_jax.prepare`: every kind of source, and what comes out."""

import io
import json
import pathlib
import pickle
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from ijepa_jax import errors
from ijepa_jax.data import decode, sources
from ijepa_jax.prepare import __main__ as prepare
from ijepa_jax.prepare import splits

_SYNSETS = ('n01440764', 'n01443537')
_TREE = tuple(
  f'{split}/{name}/{number}.png'
  for split in ('train', 'val')
  for name in ('cat', 'dog')
  for number in range(6)
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))


def _image(path: str) -> bytes:
  """An image that differs from path to path."""
  rng = np.random.default_rng(list(path.encode()))
  pixels = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'PNG')
  return file.getvalue()


def _folder(root: pathlib.Path, paths) -> pathlib.Path:
  for path in paths:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(_image(path))
  return root


def _tar(file: pathlib.Path, members: dict[str, bytes], mode='w'):
  with tarfile.open(file, mode) as tar:
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))
  return file


def _zip(file: pathlib.Path, paths, method=zipfile.ZIP_STORED):
  with zipfile.ZipFile(file, 'w', method) as archive:
    for path in paths:
      archive.writestr(path, _image(path))
  return file


def _prepare(src, dst, *options: str) -> None:
  arguments = [str(src), str(dst), '--workers=2', '--shard-size=5', *options]
  prepare.main(arguments)


def _open(dst, split='train'):
  return sources.open_source(
    'array_record', str(dst), split, image_size=8, seed=0
  )


def _content(source) -> dict[str, tuple[bytes, int | None]]:
  """Record id -> image and label."""
  examples = {}
  for index in range(len(source)):
    example = source[index]
    label = example['labels'].get('label')
    examples[source.record_id(index)] = (example['image'], label)
  return examples


def _expected(split: str, wrapper='') -> dict[str, tuple[bytes, int | None]]:
  return {
    wrapper + path: (_image(wrapper + path), int('dog' in path))
    for path in _TREE
    if path.startswith(split)
  }


def _manifest(dst, split='train') -> dict:
  return json.loads((dst / split / 'manifest.json').read_text())


def _make(kind: str, directory: pathlib.Path) -> pathlib.Path:
  if kind == 'folder':
    return _folder(directory / 'src', _TREE)
  if kind.startswith('zip'):
    method = {'zip': zipfile.ZIP_STORED, 'zip deflated': zipfile.ZIP_DEFLATED}
    return _zip(directory / 'src.zip', _TREE, method[kind])
  members = {path: _image(path) for path in _TREE}
  mode = {'tar': 'w', 'tar.gz': 'w:gz', 'tar.xz': 'w:xz'}[kind]
  return _tar(directory / f'src.{kind}', members, mode)


@pytest.mark.parametrize(
  'kind', ['folder', 'zip', 'zip deflated', 'tar', 'tar.gz', 'tar.xz']
)
def test_every_kind_of_source(kind, tmp_path):
  dst = tmp_path / 'dst'
  _prepare(_make(kind, tmp_path), dst)
  for split in ('train', 'val'):
    source = _open(dst, split)
    assert source.labels == {'label': 2}
    assert source.classes == ['cat', 'dog']
    assert _content(source) == _expected(split)
  assert [shard['records'] for shard in _manifest(dst)['shards']] == [5, 5, 2]
  assert sorted(path.name for path in (dst / 'train').iterdir()) == [
    'bad_files.jsonl',
    'manifest.json',
    'train-00000-of-00003.array_record',
    'train-00001-of-00003.array_record',
    'train-00002-of-00003.array_record',
  ]


def test_archive_with_everything_in_one_folder(tmp_path):
  src = _zip(tmp_path / 'src.zip', [f'photos/{path}' for path in _TREE])
  _prepare(src, tmp_path / 'dst')
  assert _content(_open(tmp_path / 'dst')) == _expected('train', 'photos/')


def test_only_one_split(tmp_path):
  _prepare(_make('zip', tmp_path), tmp_path / 'dst', '--split=val')
  assert [path.name for path in (tmp_path / 'dst').iterdir()] == ['val']


def test_split_names_a_source_without_splits(tmp_path):
  src = _folder(tmp_path / 'src', ['a.png', 'b.png'])
  _prepare(src, tmp_path / 'dst', '--split=holdout')
  source = _open(tmp_path / 'dst', 'holdout')
  assert source.labels == {}
  assert sorted(_content(source)) == ['a.png', 'b.png']


def test_order_mixes_classes_and_depends_on_the_seed(tmp_path):
  src = _folder(tmp_path / 'src', _TREE)
  orders = []
  for seed in ('0', '0', '1'):
    dst = tmp_path / f'dst{len(orders)}'
    _prepare(src, dst, f'--seed={seed}', '--split=train')
    orders.append(list(_content(_open(dst))))
  assert orders[0] == orders[1] != orders[2]
  assert orders[0] != sorted(orders[0])


def test_one_worker_or_two_write_the_same_bytes(tmp_path):
  src = _make('tar', tmp_path)
  _prepare(src, tmp_path / 'one', '--workers=1', '--split=train')
  _prepare(src, tmp_path / 'two', '--workers=2', '--split=train')
  for file in (tmp_path / 'one/train').iterdir():
    assert (
      file.read_bytes() == (tmp_path / 'two/train' / file.name).read_bytes()
    )


def test_bad_files_are_left_out_and_listed(tmp_path):
  src = _folder(tmp_path / 'src', [f'{n}.png' for n in range(8)])
  (src / '3.png').write_bytes(b'')
  (src / '5.png').write_bytes(_image('5.png')[:-30])
  (src / 'missing.png').symlink_to('nowhere')
  _prepare(src, tmp_path / 'dst')
  assert sorted(_content(_open(tmp_path / 'dst'))) == [
    f'{n}.png' for n in (0, 1, 2, 4, 6, 7)
  ]
  lines = (tmp_path / 'dst/train/bad_files.jsonl').read_text().splitlines()
  rows = {row['id']: row for row in map(json.loads, lines)}
  assert set(rows) == {'3.png', '5.png', 'missing.png'}
  assert rows['3.png']['reason'] == 'empty file'
  assert rows['missing.png']['reason'] == 'No such file or directory'
  assert rows['5.png']['shard'].startswith('train-0000')
  assert _manifest(tmp_path / 'dst')['bad_files'] == 3


def test_damaged_zip_member_is_a_bad_file(tmp_path):
  src = _zip(tmp_path / 'src.zip', ['a.png', 'b.png'])
  data = bytearray(src.read_bytes())
  data[data.index(b'IHDR') + 5] ^= 1  # a byte of a.png, behind zip's back
  src.write_bytes(data)
  _prepare(src, tmp_path / 'dst')
  bad = json.loads((tmp_path / 'dst/train/bad_files.jsonl').read_text())
  assert bad['id'] == 'a.png'
  assert 'checksum' in bad['reason']


def _imagenet(directory: pathlib.Path) -> pathlib.Path:
  """ImageNet's two tars, with two classes of three images each."""
  directory.mkdir()
  inner = {}
  for synset in _SYNSETS:
    names = [f'{synset}_{number}.JPEG' for number in range(3)]
    file = _tar(directory / 'inner', {name: _image(name) for name in names})
    inner[f'{synset}.tar'] = file.read_bytes()
    file.unlink()
  _tar(directory / 'ILSVRC2012_img_train.tar', inner)
  # Not in the order of their numbers, as in the original.
  names = [f'ILSVRC2012_val_0000000{number}.JPEG' for number in (3, 1, 2)]
  val = {name: _image(name) for name in names}
  _tar(directory / 'ILSVRC2012_img_val.tar', val)
  return directory


def test_imagenet_tars(tmp_path):
  src = _imagenet(tmp_path / 'src')
  labels = tmp_path / 'labels.txt'
  labels.write_text('n01443537\nn01440764\nn01440764\n')
  _prepare(src, tmp_path / 'dst', f'--validation-labels={labels}')
  train = _open(tmp_path / 'dst', 'train')
  assert train.classes == list(_SYNSETS)
  for record, (image, label) in _content(train).items():
    assert image == _image(record.rpartition('/')[2])
    assert record.startswith(_SYNSETS[label] + '/')
  validation = _content(_open(tmp_path / 'dst', 'validation'))
  assert {name[-6:-5]: label for name, (_, label) in validation.items()} == {
    '1': 1,
    '2': 0,
    '3': 0,
  }


def test_imagenet_validation_labels_come_with_tfds(tmp_path):
  src = _imagenet(tmp_path / 'src') / 'ILSVRC2012_img_val.tar'
  (split,) = splits.find_splits(str(src), None, None)
  assert split.name == 'validation'
  assert len(split.classes) == 1000
  names = {
    path: split.classes[label]
    for path, label in zip(split.listing.paths, split.labels, strict=True)
  }
  # The first lines of the published list.
  assert names['ILSVRC2012_val_00000001.JPEG'] == 'n01751748'
  assert names['ILSVRC2012_val_00000002.JPEG'] == 'n09193705'


def test_one_tar_of_imagenet_alone(tmp_path):
  src = _imagenet(tmp_path / 'src')
  _prepare(src, tmp_path / 'dst', '--split=train')
  assert [path.name for path in (tmp_path / 'dst').iterdir()] == ['train']


def test_pickled_source_reads_the_same(tmp_path):
  _prepare(_folder(tmp_path / 'src', _TREE), tmp_path / 'dst', '--split=val')
  source = _open(tmp_path / 'dst', 'val')
  first = source[0]  # so that a shard is open
  copy = pickle.loads(pickle.dumps(source))
  assert copy[0] == first
  assert _content(copy) == _content(source)


def test_prepared_images_decode(tmp_path):
  _prepare(_folder(tmp_path / 'src', ['a.png']), tmp_path / 'dst')
  image = _open(tmp_path / 'dst')[0]['image']
  assert decode.decode(image).size == (4, 3)


def _message(call, *args) -> str:
  with pytest.raises(errors.UserError) as info:
    call(*args)
  assert len(str(info.value).splitlines()) == 1
  return str(info.value)


def test_missing_source(tmp_path):
  assert 'does not exist' in _message(_prepare, tmp_path / 'no', tmp_path)


def test_source_that_is_no_archive(tmp_path):
  (tmp_path / 'a.txt').write_text('text')
  message = _message(_prepare, tmp_path / 'a.txt', tmp_path / 'dst')
  assert 'not a folder, zip or tar' in message


@pytest.mark.parametrize('kind', ['zip', 'tar', 'tar.gz'])
def test_truncated_archive(kind, tmp_path):
  src = _make(kind, tmp_path)
  src.write_bytes(src.read_bytes()[: src.stat().st_size // 2])
  message = _message(_prepare, src, tmp_path / 'dst')
  assert str(src) in message


def test_source_without_images(tmp_path):
  src = _tar(tmp_path / 'src.tar', {'readme.txt': b'text'})
  assert 'no images' in _message(_prepare, src, tmp_path / 'dst')


def test_only_broken_images(tmp_path):
  (tmp_path / 'src').mkdir()
  (tmp_path / 'src/a.png').touch()
  message = _message(_prepare, tmp_path / 'src', tmp_path / 'dst')
  assert 'a.png: empty file' in message


def test_unknown_split_of_the_source(tmp_path):
  src = _make('zip', tmp_path)
  message = _message(_prepare, src, tmp_path / 'dst', '--split=test')
  assert "has the splits 'train', 'val'" in message


def test_other_classes_in_the_same_directory(tmp_path):
  _prepare(_make('zip', tmp_path), tmp_path / 'dst')
  other = _folder(tmp_path / 'other', ['bird/1.png', 'cat/1.png'])
  message = _message(_prepare, other, tmp_path / 'dst', '--split=test')
  assert 'other classes' in message


def test_labels_that_are_no_synsets(tmp_path):
  src = _imagenet(tmp_path / 'src')
  (tmp_path / 'truth.txt').write_text('490\n361\n171\n')
  option = f'--validation-labels={tmp_path / "truth.txt"}'
  assert 'n01440764' in _message(_prepare, src, tmp_path / 'dst', option)


def test_command_prints_one_line_and_exits_with_2(tmp_path):
  command = [sys.executable, '-m', 'ijepa_jax.prepare', str(tmp_path / 'no')]
  run = subprocess.run(
    [*command, str(tmp_path / 'dst')], capture_output=True, text=True
  )
  assert run.returncode == 2
  assert len(run.stderr.splitlines()) == 1
  assert run.stderr.startswith('error: SRC: ')
  assert not (tmp_path / 'dst').exists()


@pytest.mark.parametrize(
  'option',
  ['--workers=0', '--shard-size=x', '--short-side=0', '--quality=90'],
)
def test_option_out_of_range_exits_with_2(option, tmp_path, capsys):
  with pytest.raises(SystemExit) as info, errors.exit_cleanly():
    _prepare(tmp_path, tmp_path, option)
  assert info.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('error: ')
  assert option.partition('=')[0] in line
