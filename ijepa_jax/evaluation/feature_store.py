"""Features on disk: written row by row, mapped into memory, found again.

DIR/KEY/rows         the features, end to end
DIR/KEY/labels.npz   `records`, and `label/NAME` for each label
DIR/KEY/meta.json    their shape, broken records, what the key was made of

A folder appears under its key when it is whole. The key covers all that the
features depend on, so what is found is never out of date.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from ijepa_jax import errors

# Part of every key: raise it whenever the same key would mean other features.
_VERSION = 1
_COPIED_ROWS = 1024
# What is raised on files that are not as they were written.
_DAMAGED = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile)
# Of folders that are not whole yet.
_MAKING = '.making-'
# Features that nobody has written to for so long are of a killed process.
_ABANDONED_SECONDS = 24 * 3600


@dataclasses.dataclass(frozen=True)
class Features:
  """Features of the readable records of a split.

  Attributes:
    rows: `(n, ...)` float32, mapped from disk.
    records: `(n,)` record numbers.
    labels: label name -> `(n,)` int32.
    bad: names of broken records, which are left out, and why.
  """

  rows: np.ndarray
  records: np.ndarray
  labels: Mapping[str, np.ndarray]
  bad: list[tuple[str, str]]


class Store:
  """A directory of features, for its owner alone."""

  def __init__(self, folder: str | None):
    """Opens the store.

    Args:
      folder: made when it is missing; None: a temporary one, which goes with
        the store.

    Raises:
      UserError: it cannot be made or read.
    """
    self._temporary = None
    if folder is None:
      self._temporary = tempfile.TemporaryDirectory(prefix='ijepa_jax_')
      folder = self._temporary.name
    self.folder = os.path.abspath(os.path.expanduser(folder))
    try:
      os.makedirs(self.folder, mode=0o700, exist_ok=True)
      self._remove_abandoned()
    except OSError as error:
      raise errors.UserError(
        f'--cache: {self.folder} cannot be made or read: {error.strerror}'
      ) from error

  def close(self) -> None:
    """Removes a temporary store."""
    if self._temporary is not None:
      self._temporary.cleanup()

  def find(self, made_of: Mapping[str, Any]) -> Features | None:
    """Features made earlier; None if there are none.

    Raises:
      UserError: they are damaged, or may not be read.
    """
    folder = self._path(made_of)
    if not os.path.lexists(folder):
      return None
    try:
      return _read(folder)
    except _DAMAGED as error:
      # A disk that lost power, for instance. They are not made again without
      # a word: what is wrong with them may be wrong with the disk.
      raise errors.UserError(
        f'--cache: {folder} cannot be read ({error}); delete it'
      ) from error

  @contextlib.contextmanager
  def writing(self, made_of: Mapping[str, Any]) -> Iterator['Writer']:
    """Makes features; they are there once the block ends without an error.

    Raises:
      StorageError: the disk is full, for instance.
    """
    folder = os.path.join(self.folder, _MAKING + uuid.uuid4().hex)
    try:
      os.mkdir(folder, 0o700)
      with open(os.path.join(folder, 'rows'), 'w+b') as file:
        writer = Writer(folder, file, made_of)
        yield writer
      try:
        os.rename(folder, self._path(made_of))
      except OSError:
        # Another process was faster; its features are the same.
        if self.find(made_of) is None:
          raise
    except OSError as error:
      raise errors.StorageError(
        f'--cache: {self.folder} cannot be written: {error.strerror}; mend '
        'that and run the same command again'
      ) from error
    finally:
      shutil.rmtree(folder, ignore_errors=True)

  def _remove_abandoned(self) -> None:
    """Removes what processes that were killed have begun."""
    for entry in os.scandir(self.folder):
      if not entry.name.startswith(_MAKING):
        continue
      try:
        written = os.stat(os.path.join(entry.path, 'rows')).st_mtime
      except (FileNotFoundError, NotADirectoryError):
        continue  # its owner is just beginning, or ending; or it is not ours
      if time.time() - written > _ABANDONED_SECONDS:
        shutil.rmtree(entry.path, ignore_errors=True)

  def _path(self, made_of: Mapping[str, Any]) -> str:
    content = json.dumps([_VERSION, made_of], sort_keys=True)
    digest = hashlib.blake2b(content.encode(), digest_size=16)
    return os.path.join(self.folder, digest.hexdigest())


def _read(folder: str) -> Features:
  with open(os.path.join(folder, 'meta.json'), encoding='utf-8') as file:
    meta = json.load(file)
  path = os.path.join(folder, 'labels.npz')
  with np.load(path, allow_pickle=False) as arrays:
    labels = {
      name.removeprefix('label/'): arrays[name]
      for name in arrays.files
      if name.startswith('label/')
    }
    records = arrays['records']
  rows = np.memmap(
    os.path.join(folder, 'rows'), np.float32, 'r', shape=tuple(meta['shape'])
  )
  return Features(rows, records, labels, [tuple(x) for x in meta['bad']])


class Writer:
  """Takes the rows of a feature set, then what belongs to them."""

  def __init__(self, folder: str, rows: BinaryIO, made_of: Mapping[str, Any]):
    self._folder, self._rows, self._made_of = folder, rows, made_of
    self._shape: tuple[int, ...] = ()

  def add(self, rows: np.ndarray) -> None:
    """Adds rows `(b, ...)`."""
    rows = np.ascontiguousarray(rows, np.float32)
    self._shape = rows.shape[1:]
    self._rows.write(rows.data)

  def finish(
    self,
    kept: np.ndarray,
    records: np.ndarray,
    labels: Mapping[str, np.ndarray],
    bad: list[tuple[str, str]],
  ) -> None:
    """Ends the set.

    Args:
      kept: `(n,)` bool, the rows that stay; the others were of broken records.
      records: `(n,)` record numbers.
      labels: label name -> `(n,)`.
      bad: names of the broken records, and why.
    """
    self._rows.flush()
    if not kept.all():
      self._compact(kept)
    arrays = {f'label/{name}': y[kept] for name, y in labels.items()}
    np.savez(
      os.path.join(self._folder, 'labels.npz'), records=records[kept], **arrays
    )
    meta = {
      'shape': [int(kept.sum()), *self._shape],
      'bad': bad,
      'made_of': self._made_of,
    }
    with open(
      os.path.join(self._folder, 'meta.json'), 'w', encoding='utf-8'
    ) as file:
      json.dump(meta, file, indent=1)

  def _compact(self, kept: np.ndarray) -> None:
    """Moves the rows that stay to the front."""
    rows = np.memmap(
      self._rows.name, np.float32, 'r+', shape=(len(kept), *self._shape)
    )
    numbers = np.flatnonzero(kept)
    for start in range(0, len(numbers), _COPIED_ROWS):
      block = numbers[start : start + _COPIED_ROWS]
      rows[start : start + len(block)] = rows[block]
    rows.flush()
    size = rows.itemsize * int(np.prod(self._shape)) * len(numbers)
    del rows
    self._rows.truncate(size)
