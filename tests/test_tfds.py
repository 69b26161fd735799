"""A real TFDS data set, prepared and read without TensorFlow."""

import dataclasses
import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ijepa_jax import errors
from ijepa_jax.data import decode, sources
from ijepa_jax.evaluation import labelled


class TinySquares(tfds.core.GeneratorBasedBuilder):
  """Grey squares; the label is their number modulo 3."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(shape=(None, None, 3)),
          'label': tfds.features.ClassLabel(names=['a', 'b', 'c']),
          'parity': tfds.features.ClassLabel(num_classes=2),
          'number': tfds.features.Scalar(np.int64),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    return {
      'train': self._generate_examples(range(20)),
      'test': self._generate_examples(range(20, 25)),
    }

  def _generate_examples(self, numbers):
    for number in numbers:
      file = io.BytesIO()
      Image.new('RGB', (6, 4), (number,) * 3).save(file, 'PNG')
      file.seek(0)
      yield (
        number,
        {
          'image': file,
          'label': number % 3,
          'parity': number % 2,
          'number': number,
        },
      )


class TinyNumbers(TinySquares):
  """The same without images."""

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {'number': tfds.features.Scalar(np.int64)}
      ),
    )

  def _generate_examples(self, numbers):
    for number in numbers:
      yield number, {'number': number}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory) -> str:
  path = str(tmp_path_factory.mktemp('tfds'))
  for builder in (TinySquares, TinyNumbers):
    builder(data_dir=path, file_format='array_record').download_and_prepare()
  return path


def _open(name, data_dir, split='train'):
  return sources.open_source(
    f'tfds:{name}', data_dir, split, image_size=8, seed=0
  )


def _numbers(source) -> list[int]:
  """Which squares, by the grey of their pixels."""
  examples = [source[index] for index in range(len(source))]
  for example in examples:
    grey = int(np.asarray(decode.decode(example['image']))[0, 0, 0])
    assert example['labels'] == {'label': grey % 3, 'parity': grey % 2}
    example['grey'] = grey
  return sorted(example['grey'] for example in examples)


def test_reads_images_and_all_labels(data_dir):
  source = _open('tiny_squares', data_dir)
  assert source.labels == {'label': 3, 'parity': 2}
  assert source.epoch_length == len(source) == 20
  assert isinstance(source[0]['image'], bytes)
  assert _numbers(source) == list(range(20))


def test_other_split(data_dir):
  source = _open('tiny_squares', data_dir, 'test')
  assert _numbers(source) == list(range(20, 25))


def test_evaluation_takes_its_splits_by_name_or_slice(data_dir):
  request = labelled.Request(
    data='tfds:tiny_squares',
    train_split='train[:50%]',
    test_split=None,
    max_train=None,
    max_test=3,
    image_size=8,
    seed=0,
    data_dir=data_dir,
  )
  train, test = labelled.open_splits(request)
  assert (len(train), len(test), test.split) == (10, 3, 'test')
  unknown = dataclasses.replace(request, test_split='dev')
  with pytest.raises(
    errors.UserError, match=r'--test-split=dev: .*train, test'
  ):
    labelled.open_splits(unknown)


def test_slice_of_a_split(data_dir):
  assert len(_open('tiny_squares', data_dir, 'train[:25%]')) == 5


def test_version_can_be_given(data_dir):
  assert len(_open('tiny_squares:1.0.0', data_dir)) == 20


def test_fingerprints_tell_splits_apart(data_dir):
  prints = {
    _open('tiny_squares', data_dir, split).fingerprint
    for split in ('train', 'test', 'train[:5]', 'train[5:10]')
  }
  assert len(prints) == 4
  again = _open('tiny_squares:1.0.0', data_dir, 'train').fingerprint
  assert again in prints


def test_pickled_source_reads_the_same(data_dir):
  source = _open('tiny_squares', data_dir)
  copy = pickle.loads(pickle.dumps(source))
  assert copy[7] == source[7]
  assert copy.record_id(7) == source.record_id(7)


def test_other_process_needs_neither_builder_nor_tensorflow(data_dir):
  code = (
    'import sys\n'
    'from ijepa_jax.data import sources\n'
    'source = sources.open_source("tfds:tiny_squares", sys.argv[1], "train",\n'
    '                             image_size=8, seed=0)\n'
    'source[3]\n'
    'assert not {"tensorflow", "jax", "torch"} & set(sys.modules)\n'
  )
  subprocess.run([sys.executable, '-c', code, data_dir], check=True)


def _message(*args) -> str:
  with pytest.raises(errors.UserError) as info:
    _open(*args)
  assert len(str(info.value).splitlines()) == 1
  return str(info.value)


def test_unknown_name_gives_the_nearest(data_dir):
  assert "did you mean 'tfds:imagenet2012'" in _message('imagenet212', data_dir)


def test_unknown_name_knows_what_is_in_the_directory(data_dir):
  assert "'tfds:tiny_squares'" in _message('tiny_square', data_dir)


def test_unknown_version(data_dir):
  assert 'only: 3.0.1' in _message('mnist:9.9.9', data_dir)


def test_unknown_config_gives_the_nearest(data_dir):
  assert "'mnist_corrupted/fog'" in _message('mnist_corrupted/fgo', data_dir)


def test_not_prepared_gives_the_command(data_dir):
  message = _message('cifar10', data_dir)
  assert 'tfds build cifar10 --file_format=array_record' in message
  assert f'--data_dir={data_dir}' in message


def test_imagenet_not_prepared_names_our_own_command(data_dir):
  assert 'ijepa_jax.prepare' in _message('imagenet2012', data_dir)


def test_unknown_split_names_those_there_are(data_dir):
  message = _message('tiny_squares', data_dir, 'val')
  assert "has the splits 'train', 'test'" in message


def test_data_set_without_images(data_dir):
  assert 'no image feature' in _message('tiny_numbers', data_dir)


def test_other_file_format_gives_the_command(data_dir, monkeypatch):
  # Writing TFRecord needs TensorFlow, so the refusal is played.
  def refuse(self, *args, **kwargs):
    raise NotImplementedError('Random access ... TFRECORD is not supported')

  monkeypatch.setattr(tfds.core.DatasetBuilder, 'as_data_source', refuse)
  message = _message('tiny_squares', data_dir)
  assert 'not in ArrayRecord format' in message
  assert 'tfds build tiny_squares --file_format=array_record' in message
