"""Checksums of a checkpoint's files, written with it and compared on reading.

Needed because a changed bit in the file of an array goes unnoticed otherwise:
TensorStore guards its indexes with checksums, but not the values. The checksums
are part of a checkpoint from the moment that it is one, see
`checkpoint._MetaHandler`. They are of what can be read back from the disk just
after writing.
"""

import concurrent.futures
import json
import os
import zlib
from collections.abc import Iterator, Sequence

from etils import epath

# In a checkpoint's folder.
FILE = 'meta/checksums.json'

_CHUNK = 1 << 22
_THREADS = 8


def write(folder: epath.Path, file: epath.Path) -> None:
  """Writes size and CRC-32 of all files of a checkpoint.

  Args:
    folder: of a checkpoint, or of one that is not finished yet.
    file: where to.
  """
  # Not the files beside them, which Orbax completes at the very end.
  parts = [path for path in folder.iterdir() if path.is_dir()]
  paths = sorted(path for part in parts for path in _files(part))
  sums = dict(zip([_name(folder, p) for p in paths], _checksums(paths)))
  file.write_text(json.dumps({'crc32': sums}, indent=1))


def damage(
  folder: epath.Path, process: int = 0, processes: int = 1
) -> str | None:
  """What is wrong with the files of a checkpoint, in words; None: nothing.

  Args:
    folder: of a checkpoint. One without checksums, as others may have written
      it, is not looked at.
    process: of several that look at a part each.
    processes: their number.
  """
  file = folder / FILE
  if not file.exists():
    return None
  try:
    expected = json.loads(file.read_text())['crc32']
    names = sorted(expected)[process::processes]
    found = _checksums([folder / name for name in names])
  except (ValueError, KeyError, TypeError) as error:
    return f'{FILE} cannot be read ({error})'
  except OSError as error:
    return f'{error.filename or FILE}: {error.strerror or error}'
  for name, sums in zip(names, found):
    if sums != expected[name]:
      size = expected[name][0]
      what = 'a wrong checksum' if size == sums[0] else f'not {size:,} bytes'
      return f'{name} has {what}: it was changed after it was written'
  return None


def _files(folder: epath.Path) -> Iterator[epath.Path]:
  for path in folder.iterdir():
    if path.is_dir():
      yield from _files(path)
    else:
      yield path


def _name(folder: epath.Path, path: epath.Path) -> str:
  """A file's name inside a checkpoint.

  While a checkpoint is being written, its parts have longer names.
  """
  part, *rest = path.relative_to(folder).parts
  return '/'.join([part.partition('.orbax-checkpoint-tmp')[0], *rest])


def _checksums(paths: Sequence[epath.Path]) -> list[list[int]]:
  """Size and CRC-32 of files; threads, because neither holds Python's lock."""
  workers = min(_THREADS, os.cpu_count() or 1)
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    return list(pool.map(_checksum, paths))


def _checksum(path: epath.Path) -> list[int]:
  size = crc = 0
  with path.open('rb') as file:
    while chunk := file.read(_CHUNK):
      size += len(chunk)
      crc = zlib.crc32(chunk, crc)
  return [size, crc]
