"""Lists the images of a folder, zip or tar, and reads them one by one.

Nothing is unpacked. A zip and an uncompressed tar are read at random, in any
order and by many processes; a tar of tars (ImageNet's) likewise. A compressed
tar can only be read from its beginning, so each process streams through it.
"""

import dataclasses
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Protocol

import numpy as np
import tqdm

from ijepa_jax.data import folder_index
from ijepa_jax.errors import UserError


class Reader(Protocol):
  """Reads the images of a listing. Picklable while nothing was read."""

  def read(self, path: str, where: np.ndarray) -> bytes:
    """Reads one image.

    Args:
      path: from `Listing.paths`.
      where: its row of `Listing.where`.

    Raises:
      OSError: it cannot be read.
    """


@dataclasses.dataclass(frozen=True)
class Listing:
  """The N images of a folder or archive.

  Attributes:
    reader: reads them.
    paths: N paths with '/' within the folder or archive.
    where: (N, k) int64, what the reader needs to find each.
    in_order: they can only be read in this order.
  """

  reader: Reader
  paths: list[str]
  where: np.ndarray
  in_order: bool = False


def list_images(src: str) -> Listing:
  """Lists the images of a folder, zip or tar.

  Args:
    src: an existing path.

  Raises:
    UserError: none of these, damaged, or without images.
  """
  try:
    if os.path.isdir(src):
      listing = _list_folder(src)
    elif tarfile.is_tarfile(src):
      listing = _list_tar(src)
    elif zipfile.is_zipfile(src):
      listing = _list_zip(src)
    else:
      raise UserError(f'SRC: {src} is not a folder, zip or tar')
  except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
    raise UserError(f'SRC: {src} is damaged: {error}') from error
  except OSError as error:
    raise UserError(f'SRC: {src} cannot be read: {error}') from error
  if not listing.paths:
    raise UserError(f'SRC: no images in {src}')
  return listing


class FolderReader:
  """Files below a folder."""

  def __init__(self, root: str):
    self._root = root

  def read(self, path: str, where: np.ndarray) -> bytes:
    """Reads a file; `where` is empty."""
    with open(os.path.join(self._root, path), 'rb') as file:
      return file.read()


class TarReader:
  """Members of an uncompressed tar, or of tars in it."""

  def __init__(self, archive: str):
    self._archive = archive
    self._file = -1

  def read(self, path: str, where: np.ndarray) -> bytes:
    """Reads a member; `where` is its offset and size in bytes."""
    if self._file < 0:
      self._file = os.open(self._archive, os.O_RDONLY)
    offset, size = where.tolist()
    return _read_exactly(self._file, offset, size)


class ZipReader:
  """Members of a zip, without Python's directory of it.

  `zipfile` keeps a kilobyte per member in each process that opens the file:
  gigabytes for a million images.
  """

  def __init__(self, archive: str):
    self._archive = archive
    self._file = -1

  def read(self, path: str, where: np.ndarray) -> bytes:
    """Reads a member; `where` is the row made by `_list_zip`."""
    if self._file < 0:
      self._file = os.open(self._archive, os.O_RDONLY)
    offset, stored, size, method, crc = where.tolist()
    # The local header: 30 bytes, then name and extra field (APPNOTE 4.3.7).
    header = _read_exactly(self._file, offset, 30)
    name, extra = struct.unpack_from('<HH', header, 26)
    data = _read_exactly(self._file, offset + 30 + name + extra, stored)
    if method == zipfile.ZIP_DEFLATED:
      try:
        # -15: deflate without zlib's header. Never more than was promised.
        data = zlib.decompressobj(-15).decompress(data, size + 1)
      except zlib.error as error:
        raise OSError(f'damaged member: {error}') from error
    elif method != zipfile.ZIP_STORED:
      raise OSError(f'compression method {method} is not supported')
    if len(data) != size or zlib.crc32(data) != crc:
      raise OSError('damaged member: wrong checksum')
    return data


class TarStream:
  """Members of a compressed tar, read from the beginning to the end."""

  def __init__(self, archive: str):
    self._archive = archive
    self._images: Iterator[tuple[int, bytes]] | None = None
    self._next = 0

  def read(self, path: str, where: np.ndarray) -> bytes:
    """Reads a member; `where` is its number. Fast in rising order only."""
    wanted = int(where[0])
    if self._images is None or wanted < self._next:
      self._images, self._next = self._stream(), 0
    try:
      for number, data in self._images:
        self._next = number + 1
        if number == wanted:
          return data
    except (tarfile.TarError, EOFError, zlib.error) as error:
      raise OSError(f'damaged archive: {error}') from error
    raise OSError('not in the archive any more')

  def _stream(self) -> Iterator[tuple[int, bytes]]:
    with tarfile.open(self._archive, 'r|*') as tar:
      for number, member in enumerate(_images_of(tar)):
        file = tar.extractfile(member)
        assert file is not None  # _images_of gives regular files only
        yield number, file.read()


def _list_folder(src: str) -> Listing:
  index = folder_index.index_folder(src)
  paths = [os.fsdecode(index.path(file)) for file in range(len(index))]
  where = np.empty((len(paths), 0), np.int64)
  return Listing(FolderReader(index.root), paths, where)


def _list_zip(src: str) -> Listing:
  paths, where = [], []
  with zipfile.ZipFile(src) as archive:
    for info in archive.infolist():
      if info.is_dir() or not _is_image(info.filename):
        continue
      if info.flag_bits & 1:
        raise UserError(f'SRC: {src} is encrypted')
      paths.append(info.filename)
      where.append(
        (
          info.header_offset,
          info.compress_size,
          info.file_size,
          info.compress_type,
          info.CRC,
        )
      )
  return Listing(
    ZipReader(src), paths, np.array(where, np.int64).reshape(-1, 5)
  )


def _list_tar(src: str) -> Listing:
  paths: list[str] = []
  where: list[tuple[int, ...]] = []
  with tqdm.tqdm(desc=f'listing {src}', unit=' images', delay=2) as bar:
    if _is_compressed(src):
      with tarfile.open(src, 'r|*') as tar:
        for number, member in enumerate(_images_of(tar)):
          paths.append(member.name)
          where.append((number,))
          bar.update()
    else:
      with open(src, 'rb') as file:
        for path, offset, size in _tar_offsets(file, folder=''):
          paths.append(path)
          where.append((offset, size))
          bar.update()
  if _is_compressed(src):
    reader: Reader = TarStream(src)
    rows = np.array(where, np.int64).reshape(-1, 1)
    return Listing(reader, paths, rows, in_order=True)
  return Listing(
    TarReader(src), paths, np.array(where, np.int64).reshape(-1, 2)
  )


def _tar_offsets(file: BinaryIO, folder: str) -> Iterator[tuple[str, int, int]]:
  """Path, offset and size of the images of the tar that begins here.

  Of a tar in the tar the images count as in a folder of its name: ImageNet's
  training set is a tar of one tar per class.
  """
  inner: list[tuple[str, int]] = []
  with tarfile.open(fileobj=file, mode='r:') as tar:
    while (member := tar.next()) is not None:
      # tarfile remembers all members: gigabytes for a million.
      tar.members.clear()  # type: ignore[attr-defined]
      path = os.path.join(folder, member.name)
      if member.isreg() and member.name.endswith('.tar'):
        inner.append((path.removesuffix('.tar'), member.offset_data))
      elif member.isreg() and _is_image(member.name):
        # Offsets are those in the file, also for a tar within it.
        yield path, member.offset_data, member.size
    # tarfile takes a file cut between two members for a complete one.
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
      raise tarfile.ReadError('it has no end mark, is it truncated?')
  for path, offset in inner:
    file.seek(offset)
    yield from _tar_offsets(file, path)


def _images_of(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
  while (member := tar.next()) is not None:
    tar.members.clear()  # type: ignore[attr-defined]
    if member.isreg() and _is_image(member.name):
      yield member


def _is_compressed(src: str) -> bool:
  try:
    tarfile.open(src, 'r:').close()
  except tarfile.ReadError:
    return True
  return False


def _is_image(path: str) -> bool:
  name = path.rpartition('/')[2]
  return folder_index.is_image_name(os.fsencode(name))


def _read_exactly(file: int, offset: int, size: int) -> bytes:
  data = os.pread(file, size, offset)
  if len(data) != size:
    raise OSError('the archive ends too early')
  return data
