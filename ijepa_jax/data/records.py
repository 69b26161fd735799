"""Our own ArrayRecord shards: what `python -m ijepa_jax.prepare` writes.

    DIR/SPLIT/manifest.json
    DIR/SPLIT/SPLIT-00000-of-00025.array_record ...

Each split is complete in itself and may be copied alone. A record is msgpack
{'image': bytes of the image file, 'label': int or nil, 'id': str}. Shards have
`group_size:1`, so that reading any one record reads nothing else.
"""

import dataclasses
import hashlib
import json
import os
from typing import Any

import msgpack
from array_record.python import array_record_data_source

from ijepa_jax.errors import UserError

MANIFEST = 'manifest.json'
FORMAT = 'ijepa_jax array_record 1'


@dataclasses.dataclass(frozen=True)
class Shard:
  """One file of records.

  Attributes:
    file: name within the split's directory.
    records: how many it holds.
    bytes: its size.
    sha256: of its content, in hexadecimal.
  """

  file: str
  records: int
  bytes: int
  sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What a split's directory holds.

  Attributes:
    split: its name.
    records: readable images.
    bad_files: unreadable ones, left out and listed in bad_files.jsonl.
    classes: class names by label, None without labels.
    plan: identifies source, order and options; see `prepare`.
    shards: in order.
    recoded: how large images were made smaller, None: all are as they were.
  """

  split: str
  records: int
  bad_files: int
  classes: list[str] | None
  plan: str
  shards: list[Shard]
  recoded: str | None = None

  def to_json(self) -> str:
    """The content of manifest.json."""
    fields = {'format': FORMAT, **dataclasses.asdict(self)}
    if self.recoded is None:
      del fields['recoded']
    return json.dumps(fields, indent=1) + '\n'


def read_manifest(directory: str) -> Manifest | None:
  """Reads a split's manifest; None when there is none.

  Raises:
    UserError: it cannot be understood.
  """
  path = os.path.join(directory, MANIFEST)
  try:
    with open(path, encoding='utf-8') as file:
      fields = json.load(file)
  except FileNotFoundError:
    return None
  except (OSError, ValueError) as error:
    raise UserError(f'{path} cannot be read: {error}') from error
  if not isinstance(fields, dict) or fields.pop('format', None) != FORMAT:
    raise UserError(f'{path} is not a manifest of the format {FORMAT!r}')
  try:
    shards = [Shard(**shard) for shard in fields.pop('shards')]
    return Manifest(shards=shards, **fields)
  except (KeyError, TypeError) as error:
    raise UserError(f'{path} is damaged: {error}') from error


def pack_record(image: bytes, label: int | None, record_id: str) -> bytes:
  """A record as it is stored."""
  return msgpack.packb({'image': image, 'label': label, 'id': record_id})


@dataclasses.dataclass(frozen=True)
class _WholeFile:
  """Tells array_record the count, so that it need not open every shard."""

  filename: str
  take: int
  examples_in_shard: int
  skip: int = 0


class RecordsSource:
  """One split of our own shards.

  Attributes: see `sources.Source`. `classes` names the classes of 'label'.
  """

  def __init__(self, path: str, split: str):
    """Reads the manifest and checks that every shard is there and whole.

    Args:
      path: the directory that `prepare` wrote to.
      split: one of its sub-directories.

    Raises:
      UserError: no such split, or a shard is missing or of the wrong size.
    """
    directory = os.path.join(path, split)
    manifest = read_manifest(directory)
    if manifest is None:
      raise UserError(_no_manifest(path, split))
    if not manifest.records:
      raise UserError(f'data.path: {directory} has no records')
    files = []
    for shard in manifest.shards:
      file = os.path.join(directory, shard.file)
      _check_size(file, shard.bytes)
      files.append(_WholeFile(file, shard.records, shard.records))
    self._records = array_record_data_source.ArrayRecordDataSource(files)
    self.classes = manifest.classes or []
    self.labels = {'label': len(self.classes)} if self.classes else {}
    self.name = f'{path} ({split})'
    self.epoch_length = manifest.records
    checksums = [shard.sha256 for shard in manifest.shards]
    content = json.dumps([checksums, self.classes])
    self.fingerprint = hashlib.sha256(content.encode()).hexdigest()[:32]

  def __len__(self) -> int:
    return self.epoch_length

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Reads a record; see `sources.Source`."""
    record = self._read(index)
    labels = {'label': record['label']} if self.labels else {}
    return {'image': record['image'], 'labels': labels}

  def record_id(self, index: int) -> str:
    """The image's path in the folder or archive it came from."""
    try:
      return self._read(index)['id']
    except OSError:
      return f'record {index}'

  def _read(self, index: int) -> dict[str, Any]:
    if not 0 <= index < self.epoch_length:
      raise IndexError(f'record {index} of {self.epoch_length}')
    try:
      return msgpack.unpackb(self._records[index])
    except (RuntimeError, ValueError, IndexError) as error:
      # What array_record and msgpack raise when the shard is damaged.
      raise OSError(f'damaged shard: {error}') from error


def split_names(path: str) -> list[str]:
  """Splits in a directory, sorted; none where `prepare` wrote nothing."""
  return sorted(
    entry.name
    for entry in os.scandir(path)
    if os.path.exists(os.path.join(entry.path, MANIFEST))
  )


def _no_manifest(path: str, split: str) -> str:
  splits = split_names(path)
  if splits:
    names = ', '.join(repr(name) for name in splits)
    return f'data.split={split!r}: {path} has the splits {names}'
  return (
    f'data.path: {path} has no {split}/{MANIFEST}; `python -m '
    f'ijepa_jax.prepare SRC {path}` makes it (and goes on where it stopped)'
  )


def _check_size(file: str, size: int) -> None:
  try:
    found = os.path.getsize(file)
  except OSError:
    raise UserError(f'data.path: the shard {file} is missing') from None
  if found != size:
    raise UserError(
      f'data.path: the shard {file} has {found} bytes, its manifest says {size}'
    )
