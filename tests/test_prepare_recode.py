"""`prepare --short-side=N`: large images become smaller JPEG files."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from ijepa_jax.data import decode, records
from ijepa_jax.prepare import __main__ as prepare


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))


def _prepare(src, dst, *options: str) -> None:
  prepare.main([str(src), str(dst), '--workers=2', '--shard-size=2', *options])


def _content(dst) -> dict[str, bytes]:
  """Record id -> image file."""
  source = records.RecordsSource(str(dst), 'train')
  return {source.record_id(i): source[i]['image'] for i in range(len(source))}


def _manifest(dst) -> dict:
  return json.loads((dst / 'train' / 'manifest.json').read_text())


def _photos(root: pathlib.Path) -> pathlib.Path:
  """Smooth images, one of them small, one turned by EXIF, one broken."""
  root.mkdir()
  x = np.linspace(0, 3, 120)[None, :, None] + np.arange(3)
  y = np.linspace(0, 2, 80)[:, None, None]
  image = Image.fromarray((np.sin(x * y) * 100 + 127).astype(np.uint8))
  image.save(root / 'wide.jpg')
  image.save(root / 'alpha.png')
  image.resize((30, 20)).save(root / 'small.png')
  exif = Image.Exif()
  exif[0x0112] = 6
  image.save(root / 'turned.jpg', exif=exif)
  (root / 'broken.jpg').write_bytes((root / 'wide.jpg').read_bytes()[:800])
  return root


def test_short_side_makes_large_images_smaller(tmp_path):
  src = _photos(tmp_path / 'src')
  _prepare(src, tmp_path / 'dst', '--short-side=40')
  content = _content(tmp_path / 'dst')
  sizes = {name: decode.decode(image).size for name, image in content.items()}
  assert sizes == {
    'wide.jpg': (60, 40),
    'alpha.png': (60, 40),
    'small.png': (30, 20),
    'turned.jpg': (40, 60),
  }
  assert content['small.png'] == (src / 'small.png').read_bytes()
  assert decode.is_jpeg(decode.open_image(content['alpha.png']))
  expected = decode.decode((src / 'turned.jpg').read_bytes()).resize((40, 60))
  stored = np.asarray(decode.decode(content['turned.jpg']), int)
  assert np.abs(stored - np.asarray(expected)).mean() < 3
  bad = json.loads((tmp_path / 'dst/train/bad_files.jsonl').read_text())
  assert bad['id'] == 'broken.jpg'
  manifest = _manifest(tmp_path / 'dst')
  assert manifest['recoded'] == 'shorter side at most 40, quality 95'


def test_files_that_are_stored_as_they_are_say_nothing_of_it(tmp_path):
  _prepare(_photos(tmp_path / 'src'), tmp_path / 'dst')
  assert 'recoded' not in _manifest(tmp_path / 'dst')


def test_lower_quality_gives_smaller_records(tmp_path):
  src = _photos(tmp_path / 'src')
  sizes = []
  for quality in (95, 50):
    dst = tmp_path / str(quality)
    _prepare(src, dst, '--short-side=40', f'--quality={quality}')
    sizes.append(len(_content(dst)['wide.jpg']))
  assert sizes[0] > sizes[1]


def test_recoding_does_not_depend_on_workers(tmp_path):
  src = _photos(tmp_path / 'src')
  for workers in (1, 2):
    _prepare(
      src, tmp_path / str(workers), '--short-side=40', f'--workers={workers}'
    )
  for file in (tmp_path / '1/train').iterdir():
    assert file.read_bytes() == (tmp_path / '2/train' / file.name).read_bytes()
