"""Which image files a folder holds, remembered between runs.

Listing 1.3 million files takes seconds on a local disk and minutes on a
network file system, so the list is kept in `$XDG_CACHE_HOME/ijepa_jax/index`
(default `~/.cache`). A folder's modification time changes whenever a name in
it is added, removed or renamed: a list is used again only when all of them are
as they were, which costs one `stat` per folder, not per file.
"""

import dataclasses
import hashlib
import io
import os
import tempfile
import time
import warnings

import numpy as np
import tqdm

from ijepa_jax import user_cache
from ijepa_jax.errors import UserError

SUFFIXES = ('jpg', 'jpeg', 'jpe', 'jfif', 'png', 'webp', 'bmp', 'tif', 'tiff')
_SUFFIXES = frozenset(suffix.encode() for suffix in SUFFIXES)

_MAGIC = b'ijepa_jax folder index 1\n'
_DIGEST_BYTES = 16
# A folder changed within this many seconds before it was listed may change
# again without a new modification time (coarsest: 2 s, FAT): not remembered.
_SETTLED = 2.0


@dataclasses.dataclass(frozen=True)
class FolderIndex:
  """The image files below a root: F folders, N files, in sorted order.

  Names are bytes, since file names need not be valid text, and lie in one
  block: a million `str` objects would take four times the memory.

  Attributes:
    root: absolute path.
    folders: F paths relative to the root ('' is the root), each folder before
      its sub-folders, siblings by name; also those without images.
    mtimes: (F,) int64, modification times in ns.
    starts: (F + 1,) int64, the first file of each folder.
    offsets: (N + 1,) int64, where each file's name begins in `names`.
    names: file names without their folder, end to end.
  """

  root: str
  folders: list[bytes]
  mtimes: np.ndarray
  starts: np.ndarray
  offsets: np.ndarray
  names: bytes

  def __len__(self) -> int:
    return len(self.offsets) - 1

  def folder_of(self, file: int) -> int:
    """The position in `folders` of a file's folder."""
    return int(np.searchsorted(self.starts, file, side='right')) - 1

  def path(self, file: int) -> bytes:
    """A file's path relative to the root."""
    name = self.names[self.offsets[file] : self.offsets[file + 1]]
    return os.path.join(self.folders[self.folder_of(file)], name)


def is_image_name(name: bytes) -> bool:
  """Whether the suffix is an image's and the file is not hidden.

  Hidden ones matter: macOS leaves `._photo.jpg` beside `photo.jpg`.
  """
  if name.startswith(b'.'):
    return False
  _, dot, suffix = name.rpartition(b'.')
  return bool(dot) and suffix.lower() in _SUFFIXES


def index_folder(root: str) -> FolderIndex:
  """Lists the images below a folder, from the cache when nothing changed.

  Symbolic links are followed, each folder listed once, so loops end.

  Args:
    root: an existing folder.

  Raises:
    UserError: a folder cannot be read.
  """
  root = os.path.realpath(root)
  cache = _cache_file(root)
  index = _read_cache(cache, root)
  if index is None:
    started = time.time()
    index = _scan(root)
    if index.mtimes.max() / 1e9 < started - _SETTLED:
      _write_cache(cache, index)
  return index


def _scan(root: str) -> FolderIndex:
  folders: list[bytes] = []
  mtimes: list[int] = []
  counts: list[int] = []
  lengths: list[np.ndarray] = []
  blocks: list[bytes] = []
  seen: set[tuple[int, int]] = set()
  pending = [b'']
  with tqdm.tqdm(desc=f'listing {root}', unit=' images', delay=2) as bar:
    while pending:
      folder = pending.pop()
      path = os.path.join(os.fsencode(root), folder)
      try:
        # Before listing: a change while we list must not go unnoticed.
        stat = os.stat(path)
        if (stat.st_dev, stat.st_ino) in seen:
          continue
        seen.add((stat.st_dev, stat.st_ino))
        images, subfolders = _list_folder(path)
      except OSError as error:
        raise UserError(
          f'cannot list {os.fsdecode(path)}: {error.strerror}'
        ) from error
      folders.append(folder)
      mtimes.append(stat.st_mtime_ns)
      counts.append(len(images))
      lengths.append(np.fromiter(map(len, images), np.int64, len(images)))
      blocks.append(b''.join(images))
      pending += [os.path.join(folder, name) for name in reversed(subfolders)]
      bar.update(len(images))
  return FolderIndex(
    root=root,
    folders=folders,
    mtimes=np.array(mtimes, np.int64),
    starts=np.cumsum([0, *counts], dtype=np.int64),
    offsets=np.cumsum(np.concatenate([[0], *lengths]), dtype=np.int64),
    names=b''.join(blocks),
  )


def _list_folder(path: bytes) -> tuple[list[bytes], list[bytes]]:
  """Names of the images and of the sub-folders, sorted, hidden ones left out.

  Only what the directory entries say is used: no `stat` per file.
  """
  images: list[bytes] = []
  subfolders: list[bytes] = []
  with os.scandir(path) as entries:
    for entry in entries:
      if entry.name.startswith(b'.'):
        continue
      is_file = entry.is_file(follow_symlinks=False) or entry.is_symlink()
      if is_file and is_image_name(entry.name):
        images.append(entry.name)
      elif entry.is_dir():
        subfolders.append(entry.name)
  return sorted(images), sorted(subfolders)


def _cache_file(root: str) -> str:
  key = hashlib.blake2b(os.fsencode(root), digest_size=16).hexdigest()
  return os.path.join(user_cache.folder('index'), key)


def _read_cache(cache: str, root: str) -> FolderIndex | None:
  """The remembered list, or None when absent, damaged or out of date."""
  try:
    with open(cache, 'rb') as file:
      header = file.read(len(_MAGIC) + _DIGEST_BYTES)
      payload = file.read()
  except OSError:
    return None
  # Damage would show as any of numpy's errors, or as wrong file names.
  if header != _MAGIC + _digest(payload):
    return None
  with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
    index = FolderIndex(
      root=root,
      folders=arrays['folders'].tobytes().split(b'\0'),
      mtimes=arrays['mtimes'],
      starts=arrays['starts'],
      offsets=arrays['offsets'],
      names=arrays['names'].tobytes(),
    )
  encoded = os.fsencode(root)
  try:
    for folder, mtime in zip(index.folders, index.mtimes, strict=True):
      if os.stat(os.path.join(encoded, folder)).st_mtime_ns != mtime:
        return None
  except OSError:
    return None
  return index


def _write_cache(cache: str, index: FolderIndex) -> None:
  buffer = io.BytesIO()
  np.savez(
    buffer,
    folders=np.frombuffer(b'\0'.join(index.folders), np.uint8),
    mtimes=index.mtimes,
    starts=index.starts,
    offsets=index.offsets,
    names=np.frombuffer(index.names, np.uint8),
  )
  payload = buffer.getvalue()
  directory = os.path.dirname(cache)
  try:
    os.makedirs(directory, mode=0o700, exist_ok=True)
    # Written aside and renamed: several hosts may do this at the same time.
    with tempfile.TemporaryDirectory(dir=directory) as aside:
      temporary = os.path.join(aside, 'index')
      with open(temporary, 'wb') as file:
        file.write(_MAGIC + _digest(payload) + payload)
      os.replace(temporary, cache)
  except OSError as error:
    # A read-only home costs time at the next start, nothing else.
    warnings.warn(f'the list of images is not kept: {error}', stacklevel=2)


def _digest(payload: bytes) -> bytes:
  return hashlib.blake2b(payload, digest_size=_DIGEST_BYTES).digest()
