"""A folder of image files as a source, and what its sub-folders mean."""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ijepa_jax.data import folder_index
from ijepa_jax.errors import UserError

SPLITS = ('train', 'val', 'validation', 'test')


@dataclasses.dataclass(frozen=True)
class Layout:
  """What the folders that hold images mean.

  Attributes:
    splits: split -> positions of its folders, in order; when there are no
      split folders the only key is ''.
    classes: class names, sorted, the same for all splits.
    labels: for each folder its position in `classes`, or -1.
  """

  splits: dict[str, list[int]]
  classes: list[str]
  labels: list[int]

  def is_labelled(self, split: str) -> bool:
    """Whether there are classes, and every image of the split has one."""
    if not self.classes:
      return False
    return all(self.labels[folder] >= 0 for folder in self.splits[split])


def read_layout(folders: Sequence[str]) -> Layout:
  """Splits and classes from the names of folders.

  Folders that all images have in common mean nothing. Below them, a folder
  called train, val, validation or test is that split, and then all others are
  left out. Within the splits, classes are the folders of the first level at
  which there is more than one: `photos/cat/a.jpg` and `photos/dog/old/b.jpg`
  have the classes cat and dog. A split with an image outside of the class
  folders has no labels.

  Args:
    folders: paths with '/', relative to the root, of folders that hold images.
  """
  parts = [tuple(folder.split('/')) if folder else () for folder in folders]
  while len(first := {part[:1] for part in parts}) == 1:
    if first & {(), *((split,) for split in SPLITS)}:
      break
    parts = [part[1:] for part in parts]
  splits: dict[str, list[int]] = {}
  for position, part in enumerate(parts):
    if part and part[0] in SPLITS:
      splits.setdefault(part[0], []).append(position)
  if splits:
    parts = [part[1:] for part in parts]
  else:
    splits[''] = list(range(len(parts)))
  used = [position for folders in splits.values() for position in folders]
  level, classes = _class_level([parts[position] for position in used])
  number = {name: label for label, name in enumerate(classes)}
  labels = [-1] * len(parts)
  for position in used:
    if classes and len(parts[position]) > level:
      labels[position] = number[parts[position][level]]
  return Layout(splits, classes, labels)


def _class_level(parts: Sequence[tuple[str, ...]]) -> tuple[int, list[str]]:
  """The first level with more than one name, and its names, sorted."""
  level = 0
  while True:
    names = {part[level] for part in parts if len(part) > level}
    if len(names) != 1:
      return level, sorted(names)
    level += 1


class FolderSource:
  """The images of one split of a folder, in sorted order.

  Attributes: see `sources.Source`. `classes` names the classes of 'label'.
  The fingerprint covers names and labels, not the files' contents: those would
  all have to be read.
  """

  def __init__(self, path: str, split: str):
    """Lists the folder, or takes the list from the cache.

    Args:
      path: an existing folder.
      split: a sub-folder of that name; in a folder without split folders,
        'train' is the folder itself.

    Raises:
      UserError: the folder has no images, or no such split.
    """
    self._index, filled, layout = _read_folder(path)
    counts = np.diff(self._index.starts)
    key = _split_key(layout, split, path)
    folders, labelled = layout.splits[key], layout.is_labelled(key)
    # Folders are in depth-first order, so those of a split are neighbours.
    first, last = filled[folders[0]], filled[folders[-1]]
    self._first = int(self._index.starts[first])
    self._length = int(self._index.starts[last + 1]) - self._first
    self._labels = np.full(len(counts), -1, np.int32)  # (F,)
    if labelled:
      self._labels[filled] = layout.labels
    self.classes = layout.classes if labelled else []
    self.labels = {'label': len(self.classes)} if labelled else {}
    self.name = f'{path} ({split})'
    self.epoch_length = self._length
    self.fingerprint = self._fingerprint(filled[folders])

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Reads a file; see `sources.Source`."""
    file = self._file(index)
    root = os.fsencode(self._index.root)
    with open(os.path.join(root, self._index.path(file)), 'rb') as stream:
      image = stream.read()
    if not self.labels:
      return {'image': image, 'labels': {}}
    label = int(self._labels[self._index.folder_of(file)])
    return {'image': image, 'labels': {'label': label}}

  def record_id(self, index: int) -> str:
    """The file's path relative to the folder."""
    return printable(self.path(index))

  def path(self, index: int) -> bytes:
    """The file's path relative to the folder, as the file system has it."""
    return self._index.path(self._file(index))

  def stamp(self, index: int) -> tuple[int, int]:
    """Bytes and modification time (ns) of a file; 0, 0 if there is none.

    The fingerprint does not cover contents; who keeps what they gave should.
    """
    root = os.fsencode(self._index.root)
    return file_stamp(os.path.join(root, self.path(index)))

  def _file(self, index: int) -> int:
    if not 0 <= index < self._length:
      raise IndexError(f'record {index} of {self._length}')
    return self._first + int(index)

  def _fingerprint(self, folders: np.ndarray) -> str:
    index = self._index
    digest = hashlib.blake2b(digest_size=16)
    for folder in folders:
      start, end = index.offsets[index.starts[[folder, folder + 1]]]
      label = int(self._labels[folder])
      digest.update(index.folders[folder] + b'\0%d\0' % label)
      digest.update(index.names[start:end])
    lengths = np.diff(index.offsets)
    digest.update(lengths[self._first : self._first + self._length].tobytes())
    return digest.hexdigest()


def split_names(path: str) -> list[str]:
  """Splits of an existing folder; 'train' alone without split folders.

  Raises:
    UserError: the folder has no images.
  """
  _, _, layout = _read_folder(path)
  return [split or 'train' for split in layout.splits]


def _read_folder(
  path: str,
) -> tuple[folder_index.FolderIndex, np.ndarray, Layout]:
  """The list of files, which folders have any, and what those mean."""
  index, filled, names = list_folder(path, 'data.path')
  return index, filled, read_layout(names)


def list_folder(
  path: str, field: str
) -> tuple[folder_index.FolderIndex, np.ndarray, list[str]]:
  """Lists the images of a folder, or takes the list from the cache.

  Args:
    path: an existing folder.
    field: the config field or argument that it came from.

  Returns:
    The files, numbers of the folders that have any, and names of those.

  Raises:
    UserError: there are no images.
  """
  index = folder_index.index_folder(path)
  filled = np.flatnonzero(np.diff(index.starts))
  if not len(filled):
    raise UserError(
      f'{field}: no images below {path} (looked for '
      + ', '.join('.' + suffix for suffix in folder_index.SUFFIXES)
      + ')'
    )
  return index, filled, [printable(index.folders[number]) for number in filled]


def file_stamp(path: bytes | str) -> tuple[int, int]:
  """Bytes and modification time (ns) of a file; 0, 0 if there is none."""
  try:
    found = os.stat(path)
  except OSError:
    return 0, 0
  return found.st_size, found.st_mtime_ns


def printable(path: bytes) -> str:
  r"""A file name as text; bytes that are not UTF-8 become `\xNN`."""
  return path.decode('utf-8', 'backslashreplace')


def _split_key(layout: Layout, split: str, path: str) -> str:
  if split in layout.splits:
    return split
  if '' not in layout.splits:
    raise UserError(
      f'data.split={split!r}: {path} has the splits '
      + ', '.join(repr(name) for name in layout.splits)
    )
  if split != 'train':
    raise UserError(
      f'data.split={split!r}: {path} has no sub-folder of that name with '
      "images; without split folders all of it is 'train'"
    )
  return ''
