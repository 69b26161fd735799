"""The speed of the input pipeline: what is measured, and what is absent."""

import json

import numpy as np
import pytest
import tiny
from absl import flags
from PIL import Image

from ijepa_jax import errors
from ijepa_jax.benchmark import input as input_lib
from ijepa_jax.data import folder, scenes


@pytest.fixture(autouse=True)
def _parsed_flags(monkeypatch, tmp_path):
  """Grain's workers read absl flags, which only a program parses."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setattr(input_lib, '_FEWEST', 1)
  monkeypatch.setattr(input_lib, '_WORKERS', (0, 1))
  was_parsed = flags.FLAGS.is_parsed()
  flags.FLAGS.mark_as_parsed()
  yield
  if not was_parsed:
    flags.FLAGS.unparse_flags()


def _measure(source, **overrides) -> dict:
  result = input_lib.measure(tiny.config(**overrides), source, seconds=0)
  assert json.loads(json.dumps(result)) == result
  return result


def _photos(tmp_path):
  (tmp_path / 'photos').mkdir()
  rng = np.random.default_rng(0)
  for number in range(5):
    pixels = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'photos' / f'{number}.jpg')
  (tmp_path / 'photos' / 'broken.jpg').write_bytes(b'broken')
  return folder.FolderSource(str(tmp_path / 'photos'), 'train')


@pytest.mark.parametrize('mode', ['exact', 'fast'])
def test_files_are_read_and_decoded(mode, tmp_path):
  result = _measure(_photos(tmp_path), data__decode=mode)
  assert result['decode'] == mode
  assert result['batch_size'] == 5  # the broken one is passed over
  assert result['mean_file_bytes'] > 1000
  absent = [name for name, spread in result['stages'].items() if not spread]
  assert absent == ['draw']
  assert list(result['workers']) == ['0', '1']
  for spread in result['bare'], *result['workers'].values():
    assert spread['cpu']['median'] > 0
    assert spread['wall']['median'] > 0
  for spread in result['workers'].values():
    for share in 'share', 'share_at_once':
      assert 0 < spread[share]['median'] < 10
  assert result['workers']['1']['main_cpu']['median'] > 0
  text = input_lib.table(result)
  for word in (
    'bare Pillow loop',
    'alone',
    '1 workers',
    'draw',
    'absent',
    'hand-over',
  ):
    assert word in text


def test_drawn_scenes_have_no_file_to_read():
  result = _measure(scenes.ScenesSource('train', 24, 0))
  absent = [name for name, spread in result['stages'].items() if not spread]
  assert absent == ['read', 'decode']
  assert result['mean_file_bytes'] is None


def test_source_without_a_readable_record(tmp_path):
  (tmp_path / 'photos').mkdir()
  (tmp_path / 'photos' / 'broken.jpg').write_bytes(b'broken')
  source = folder.FolderSource(str(tmp_path / 'photos'), 'train')
  with pytest.raises(errors.DataError, match='no record can be read'):
    _measure(source)
