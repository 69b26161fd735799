"""TensorFlow Datasets prepared as ArrayRecord, read without TensorFlow."""

import contextlib
import difflib
import hashlib
import os
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from ijepa_jax.errors import UserError


class TfdsSource:
  """One split of a prepared data set.

  Attributes: see `sources.Source`. Every `ClassLabel` of the data set is a
  label, under its own name.
  """

  def __init__(self, name: str, path: str | None, split: str):
    """Opens the data set.

    Args:
      name: NAME, NAME/CONFIG, or either with :VERSION.
      path: TFDS's data directory; None is its default.
      split: a split; TFDS's slices work as well ('train[:10%]').

    Raises:
      UserError: unknown, not prepared, not as ArrayRecord, without such a
        split, or without images.
    """
    self._data_dir = os.path.expanduser(path) if path else None
    builder = _open_builder(name, self._data_dir)
    features = builder.info.features or {}
    images = [
      key
      for key, feature in features.items()
      if isinstance(feature, tfds.features.Image)
    ]
    if not images:
      raise UserError(f"data.source='tfds:{name}' has no image feature")
    self._image = 'image' if 'image' in images else images[0]
    # Left encoded: ours to decode, and TFDS may want TensorFlow for it.
    self._skip = images
    self.labels = {
      key: feature.num_classes
      for key, feature in features.items()
      if isinstance(feature, tfds.features.ClassLabel) and feature.num_classes
    }
    info = builder.info
    # With the version, so that workers open exactly the same.
    self._name = info.full_name.rpartition('/')[0] + f':{info.version}'
    self._split = split
    self._data = self._open(builder)
    self.name = f'tfds:{self._name} ({split})'
    self.epoch_length = len(self._data)
    if not self.epoch_length:
      raise UserError(f'data.split={split!r}: tfds:{name} has no records there')
    shards = {key: part.shard_lengths for key, part in info.splits.items()}
    content = repr((info.full_name, split, self.epoch_length, sorted(shards)))
    content += repr(sorted(shards.items()))
    self.fingerprint = hashlib.sha256(content.encode()).hexdigest()[:32]

  def __len__(self) -> int:
    return self.epoch_length

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Reads a record; see `sources.Source`."""
    if not 0 <= index < self.epoch_length:
      raise IndexError(f'record {index} of {self.epoch_length}')
    if self._data is None:
      self._data = self._open(_open_builder(self._name, self._data_dir))
    try:
      example = self._data[int(index)]
    except (RuntimeError, ValueError) as error:
      # What array_record and the example parser raise on damaged shards.
      raise OSError(f'damaged shard: {error}') from error
    labels = {key: int(example[key]) for key in self.labels}
    return {'image': example[self._image], 'labels': labels}

  def record_id(self, index: int) -> str:
    """The record's number: TFDS does not keep names."""
    return f'{self._name} {self._split} {index}'

  def __getstate__(self) -> dict[str, Any]:
    # A worker opens its own: TFDS's data sources do not all pickle.
    return {**self.__dict__, '_data': None}

  def _open(self, builder: tfds.core.DatasetBuilder) -> Any:
    decoders = {key: tfds.decode.SkipDecoding() for key in self._skip}
    try:
      return builder.as_data_source(self._split, decoders=decoders)
    except NotImplementedError:
      raise UserError(
        f'{builder.data_dir} is not in ArrayRecord format: prepare it again, '
        + _prepare_command(self._name.partition(':')[0], self._data_dir)
      ) from None
    except ValueError as error:
      names = ', '.join(repr(key) for key in builder.info.splits)
      raise UserError(
        f'data.split={self._split!r}: tfds:{self._name} has the splits {names}'
      ) from error


def split_names(name: str, path: str | None) -> list[str]:
  """Splits of a prepared data set; arguments and errors as of `TfdsSource`."""
  builder = _open_builder(name, os.path.expanduser(path) if path else None)
  return list(builder.info.splits)


def _open_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
  with _quiet():
    try:
      builder = tfds.builder(name, data_dir=data_dir)
      prepared = builder.is_prepared()
    except (ValueError, AssertionError, ImportError) as error:
      raise UserError(_unknown(name, data_dir, error)) from error
  if prepared:
    return builder
  raise UserError(
    f"data.source='tfds:{name}' is not prepared in {builder.data_dir}: "
    + _prepare_command(name, data_dir)
  )


def _unknown(name: str, data_dir: str | None, error: Exception) -> str:
  """Says what is wrong with a name that TFDS does not take."""
  base = name.partition(':')[0].partition('/')[0]
  known = set(tfds.list_builders(with_community_datasets=False))
  if base in known:
    reason = str(error).rpartition('}": ')[2].partition('\n')[0]
    config = name.partition('/')[2].partition(':')[0]
    configs = list(tfds.builder_cls(base).builder_configs)
    near = difflib.get_close_matches(config, configs, n=1, cutoff=0.1)
    return f"data.source='tfds:{name}': {reason.partition('. Here')[0]}" + (
      f"; did you mean '{base}/{near[0]}'?" if near else ''
    )
  if data_dir and os.path.isdir(data_dir):
    known.update(os.listdir(data_dir))
  near = difflib.get_close_matches(base, sorted(known), n=1)
  return f"data.source='tfds:{name}' is not a known data set" + (
    f"; did you mean 'tfds:{near[0]}'?" if near else ''
  )


def _prepare_command(name: str, data_dir: str | None) -> str:
  where = f' --data_dir={data_dir}' if data_dir else ''
  command = f'`tfds build {name} --file_format=array_record{where}`'
  if not name.startswith('imagenet2012'):
    return command
  return (
    f'{command} (needs TensorFlow), or without it `python -m '
    "ijepa_jax.prepare DIR_OF_TARS DST` and data.source='array_record'"
  )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps TFDS's warnings about absent files out of our one-line errors."""
  before = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    logging.set_verbosity(before)
