"""Splits to fit on and to measure on."""

import numpy as np
import pytest
from PIL import Image

from ijepa_jax import errors
from ijepa_jax.data import folder, threads
from ijepa_jax.evaluation import labelled, subject


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def images(root, *names):
  for name in names:
    path = root / f'{name}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (8, 8)).save(path)
  return str(root)


def request(data, **changes):
  fields = {
    'train_split': None,
    'test_split': None,
    'max_train': None,
    'max_test': None,
    'image_size': 16,
    'seed': 0,
  }
  return labelled.Request(data=data, **(fields | changes))


def test_a_fifth_is_held_out_where_there_is_no_test_split(tmp_path):
  names = [f'{label}/{k}' for label in 'ab' for k in range(10)]
  data = images(tmp_path / 'data', *names)
  train, test = labelled.open_splits(request(data))
  assert sorted([*train.records, *test.records]) == list(range(20))
  assert len(test) == 4
  fewer, same = labelled.open_splits(request(data, max_train=5))
  assert len(fewer) == 5
  # However few are fitted on, none of them is a test image.
  assert same.fingerprint == test.fingerprint
  assert set(fewer.records) <= set(train.records)


@pytest.mark.parametrize('splits', [{}, {'test_split': 'train'}])
def test_what_is_measured_on_does_not_depend_on_how_many_are_fitted_on(splits):
  few, many = (
    labelled.open_splits(request('scenes', max_train=n, max_test=50, **splits))
    for n in (100, 300)
  )
  np.testing.assert_array_equal(few[1].records, many[1].records)
  assert few[1].fingerprint == many[1].fingerprint
  for train, test in (few, many):
    assert len(np.unique(train.records)) == len(train) in (100, 300)
    assert len(np.unique(test.records)) == 50
    if splits:
      assert not set(train.records) & set(test.records)


def test_other_masks_are_other_data(tmp_path):
  names = [f'{kind}/{k}' for kind in ('images', 'masks') for k in range(10)]
  data = images(tmp_path / 'data', *names)
  train, _ = labelled.open_splits(request(data))
  again, _ = labelled.open_splits(request(data))
  assert again.fingerprint == train.fingerprint
  mask = tmp_path / 'data' / 'masks' / f'{train.records[0]}.png'
  Image.new('L', (8, 8), 1).save(mask)
  changed, _ = labelled.open_splits(request(data))
  assert changed.fingerprint != train.fingerprint


def test_too_few_images_are_one_line(tmp_path):
  data = images(tmp_path / 'data', 'images/a', 'masks/a')
  with pytest.raises(errors.UserError, match=r'0 of the 1 images.*expected 2'):
    labelled.open_splits(request(data))


def test_a_number_must_be_the_same_class_in_both(tmp_path):
  train, test, other = (
    folder.FolderSource(images(tmp_path / name, *names), 'train')
    for name, names in (
      ('train', ('ant/1', 'bee/1')),
      ('test', ('ant/2', 'bee/2')),
      ('other', ('bee/3', 'cat/3')),
    )
  )
  labelled.require_same_labels(train, test, 'eval.split')
  message = "^eval.split: .* 'ant', 'cat' in one of them"
  with pytest.raises(errors.UserError, match=message):
    labelled.require_same_labels(train, other, 'eval.split')


def test_a_broken_first_record_does_not_hide_the_labels(tmp_path):
  data = images(tmp_path / 'data', 'a/1', 'b/1')
  (tmp_path / 'data' / 'a' / '0.png').symlink_to(tmp_path / 'nowhere')
  source = folder.FolderSource(data, 'train')
  assert source.record_id(0) == 'a/0.png'
  assert labelled.is_labelled(source)


@pytest.mark.parametrize(
  ('path', 'out'),
  [
    ('run', 'run/evaluation'),
    ('run/checkpoints/900', 'run/evaluation'),
    ('weights.safetensors', 'weights.safetensors.evaluation'),
  ],
)
def test_results_are_never_kept_within_a_checkpoint(
  tmp_path, monkeypatch, path, out
):
  (tmp_path / 'run' / 'checkpoints' / '900').mkdir(parents=True)
  assert subject._default_out(str(tmp_path / path)) == str(tmp_path / out)


def test_reading_ahead_keeps_the_order_and_ends_with_its_consumer():
  begun = []

  def function(item):
    begun.append(item)
    return np.sqrt(item)

  results = list(threads.in_threads(function, range(50), 7))
  assert results == [np.sqrt(k) for k in range(50)]
  begun.clear()
  ahead = threads.in_threads(function, range(10**9), 7)
  next(ahead)
  ahead.close()
  assert len(begun) <= 8  # those that were ahead, and no more
