"""Writes one shard, in a worker process, or finds it already written."""

import dataclasses
import hashlib
import multiprocessing
import os
import signal
import threading
from multiprocessing.sharedctypes import Synchronized

import numpy as np
from array_record.python import array_record_module

from ijepa_jax.data import decode, folder, records
from ijepa_jax.errors import UserError
from ijepa_jax.prepare.archives import Reader
from ijepa_jax.prepare.recode import Recode

# One record per group: a random read reads nothing else. Image files do not
# compress further, and without compression a read takes half the time.
_OPTIONS = 'group_size:1,uncompressed'


@dataclasses.dataclass(frozen=True)
class Task:
  """One shard to write: n images, and a shard that is perhaps there.

  Attributes:
    file: path of the shard.
    paths: n paths, which become the records' ids.
    where: (n, k), see `archives.Reader`.
    labels: n classes, None without labels.
    recode: makes large images smaller; None: they are stored as they are.
    finished: what an earlier run noted when it finished this shard.
  """

  file: str
  paths: list[str]
  where: np.ndarray
  labels: list[int] | None
  recode: Recode | None = None
  finished: 'Result | None' = None


@dataclasses.dataclass(frozen=True)
class Result:
  """A shard that is written, and the images left out of it."""

  shard: records.Shard
  bad_files: list[dict[str, str]]


# Set in each worker by `start_worker`: what all its tasks share. A reader of a
# compressed tar must stay alive between them to keep its position.
_reader: Reader
_images_done: 'Synchronized[int]'


def start_worker(reader: Reader, images_done: 'Synchronized[int]') -> None:
  """Initialises a worker process; `images_done` counts for the progress."""
  global _reader, _images_done
  _reader, _images_done = reader, images_done
  # Ctrl-C reaches the whole process group; the main process ends the workers.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def write_shard(task: Task) -> Result:
  """Writes a shard, unless an earlier run finished it and it is unharmed.

  Raises:
    UserError: the shard cannot be written.
  """
  name = os.path.basename(task.file)
  if task.finished is not None and _is_whole(task.file, task.finished.shard):
    _count(len(task.paths))
    return task.finished
  temporary = task.file + '.tmp'
  try:
    bad_files = _write(temporary, task)
    size = os.path.getsize(temporary)
    checksum = _sha256(temporary)
    os.replace(temporary, task.file)
  except (OSError, RuntimeError) as error:
    raise UserError(f'cannot write {task.file}: {error}') from error
  count = len(task.paths) - len(bad_files)
  return Result(records.Shard(name, count, size, checksum), bad_files)


def _write(file: str, task: Task) -> list[dict[str, str]]:
  """Writes the records; returns what was left out and why."""
  bad_files = []
  writer = array_record_module.ArrayRecordWriter(file, _OPTIONS)
  for i, path in enumerate(task.paths):
    record_id = folder.printable(os.fsencode(path))
    try:
      image = _reader.read(path, task.where[i])
      if task.recode is not None:
        image = task.recode(image)
      else:
        # The smallest scale still reads the whole file: what is truncated or
        # damaged shows, at half the cost of full size.
        decode.decode(image, min_size=(1, 1))
    except (OSError, decode.BadImage) as error:
      bad_files.append({'id': record_id, 'reason': _reason(error)})
    else:
      label = None if task.labels is None else task.labels[i]
      writer.write(records.pack_record(image, label, record_id))
    _count(1)
  writer.close()
  return bad_files


def _reason(error: Exception) -> str:
  # An OSError's text would hold the path on this machine.
  return getattr(error, 'strerror', None) or str(error)


def _is_whole(file: str, shard: records.Shard) -> bool:
  try:
    return (
      os.path.getsize(file) == shard.bytes and _sha256(file) == shard.sha256
    )
  except OSError:
    return False


def _sha256(path: str) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _count(images: int) -> None:
  with _images_done.get_lock():
    _images_done.value += images


def _end_with_parent() -> None:
  """Ends this process when the main one is killed.

  Otherwise the workers would wait for tasks for ever, or write on while the
  user starts again.
  """
  parent = multiprocessing.parent_process()
  if parent is not None:
    parent.join()
    os._exit(1)
