"""Writes the shards of a split with several processes, and its manifest.

Shards are finished one by one: written aside, renamed, then noted in
`unfinished.jsonl`. After a kill the same command checks those by size and
checksum, and writes the rest. The result is the same, byte for byte: which
images a shard holds, and in which order, is a function of source and options.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
import tqdm

from ijepa_jax.data import records
from ijepa_jax.errors import UserError
from ijepa_jax.prepare import shards
from ijepa_jax.prepare.recode import Recode
from ijepa_jax.prepare.splits import Split

_NOTES = 'unfinished.jsonl'
_BAD_FILES = 'bad_files.jsonl'


def prepare_split(
  split: Split,
  dst: str,
  *,
  shard_size: int,
  seed: int,
  workers: int,
  recode: Recode | None = None,
) -> records.Manifest:
  """Writes one split to `dst`/`split.name`, or finishes an earlier run.

  Args:
    split: the images.
    dst: directory; made when needed.
    shard_size: images per shard.
    seed: of the order, which mixes the classes over the shards.
    workers: processes.
    recode: makes large images smaller.

  Raises:
    UserError: the directory holds something else, or cannot be written, or no
      image is readable.
  """
  directory = os.path.join(dst, split.name)
  order = split.images
  if not split.listing.in_order:
    order = np.random.default_rng(seed).permutation(order)
  plan = _plan_id(split, order, shard_size, recode)
  try:
    _check_classes(split, dst)
    os.makedirs(directory, exist_ok=True)
    finished = _finished(directory, plan)
    _write_lines(
      os.path.join(directory, _NOTES),
      [{'plan': plan}, *map(dataclasses.asdict, finished.values())],
    )
    tasks = _make_tasks(split, order, directory, shard_size, finished, recode)
    results = _run(split, tasks, directory, workers)
    return _finish(split, directory, plan, results, recode)
  except OSError as error:
    raise UserError(f'cannot write to {directory}: {error}') from error


def _plan_id(
  split: Split, order: np.ndarray, shard_size: int, recode: Recode | None
) -> str:
  """Identifies all that the shards depend on but the files' contents."""
  header: list[Any] = [records.FORMAT, shard_size, split.classes]
  header.append(split.listing.in_order)
  if recode is not None:
    header.append(recode.plan())
  digest = hashlib.sha256(json.dumps(header).encode())
  for image in order:
    digest.update(os.fsencode(split.listing.paths[image]) + b'\0')
  digest.update(split.listing.where[order].tobytes())
  if split.labels is not None:
    digest.update(split.labels.astype(np.int64).tobytes())
  return digest.hexdigest()[:32]


def _check_classes(split: Split, dst: str) -> None:
  """A label must mean the same in all splits below one directory."""
  if split.classes is None or not os.path.isdir(dst):
    return
  for name in sorted({*os.listdir(dst)} - {split.name}):
    other = records.read_manifest(os.path.join(dst, name))
    if other and other.classes and other.classes != split.classes:
      raise UserError(
        f'DST: {os.path.join(dst, name)} has other classes than {split.name!r}'
        f' ({len(other.classes)} and {len(split.classes)}): the same label '
        'would mean two things; give another directory'
      )


def _finished(directory: str, plan: str) -> dict[str, shards.Result]:
  """The shards, by file name, that earlier runs of this plan noted as done."""
  manifest = records.read_manifest(directory)
  notes = _read_lines(os.path.join(directory, _NOTES))
  if manifest is not None:
    bad = _read_lines(os.path.join(directory, _BAD_FILES))
    found, old_plan = [], manifest.plan
    for shard in manifest.shards:
      its_bad = [row for row in bad if row['shard'] == shard.file]
      found.append(shards.Result(shard, its_bad))
  elif notes:
    old_plan = notes[0].get('plan', '')
    found = [
      shards.Result(records.Shard(**row['shard']), row['bad_files'])
      for row in notes[1:]
    ]
  elif os.listdir(directory):
    raise UserError(f'DST: {directory} is not empty and not of our making')
  else:
    return {}
  if old_plan != plan:
    raise UserError(
      f'DST: {directory} was made from another source or with other options; '
      'delete it or give another directory'
    )
  return {result.shard.file: result for result in found}


def _make_tasks(
  split: Split,
  order: np.ndarray,
  directory: str,
  shard_size: int,
  finished: dict[str, shards.Result],
  recode: Recode | None,
) -> list[shards.Task]:
  tasks = []
  total = -(-len(order) // shard_size)
  labels = np.full(len(split.listing.paths), -1)
  if split.labels is not None:
    labels[split.images] = split.labels
  for number in range(total):
    images = order[number * shard_size : (number + 1) * shard_size]
    name = f'{split.name}-{number:05d}-of-{total:05d}.array_record'
    task = shards.Task(
      file=os.path.join(directory, name),
      paths=[split.listing.paths[image] for image in images],
      where=split.listing.where[images],
      labels=None if split.labels is None else labels[images].tolist(),
      recode=recode,
      finished=finished.get(name),
    )
    tasks.append(task)
  return tasks


def _run(
  split: Split, tasks: list[shards.Task], directory: str, workers: int
) -> list[shards.Result]:
  """Has all shards written, in any order; returns them in theirs."""
  # Workers fork from a clean process that has imported everything once.
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload([shards.__name__])
  images_done = context.Value('q', 0)
  pool = concurrent.futures.ProcessPoolExecutor(
    min(workers, len(tasks)),
    mp_context=context,
    initializer=shards.start_worker,
    initargs=(split.listing.reader, images_done),
  )
  bar = tqdm.tqdm(desc=split.name, total=len(split.images), unit=' images')
  notes = os.path.join(directory, _NOTES)
  try:
    futures = [pool.submit(shards.write_shard, task) for task in tasks]
    pending = set(futures)
    while pending:
      done, pending = concurrent.futures.wait(
        pending, timeout=0.5, return_when=concurrent.futures.FIRST_COMPLETED
      )
      for future in done:
        _append_line(notes, dataclasses.asdict(future.result()))
      bar.update(images_done.value - bar.n)
  except BrokenProcessPool as error:
    raise UserError(
      'a worker process died (out of memory?); finished shards are kept: run '
      'the same command again, perhaps with fewer --workers'
    ) from error
  finally:
    bar.close()
    if pending:
      # On the way out of an error: do not wait for shards under way.
      for worker in multiprocessing.active_children():
        worker.terminate()
    pool.shutdown(cancel_futures=True)
  return [future.result() for future in futures]


def _finish(
  split: Split,
  directory: str,
  plan: str,
  results: list[shards.Result],
  recode: Recode | None,
) -> records.Manifest:
  """Writes the list of bad files and, last of all, the manifest."""
  bad = [
    {'shard': result.shard.file, **row}
    for result in results
    for row in result.bad_files
  ]
  if len(bad) == len(split.images):
    raise UserError(
      f'SRC: none of the {len(bad)} images of {split.name!r} can be read; the '
      f'first: {bad[0]["id"]}: {bad[0]["reason"]}'
    )
  _write_lines(os.path.join(directory, _BAD_FILES), bad)
  manifest = records.Manifest(
    split=split.name,
    records=len(split.images) - len(bad),
    bad_files=len(bad),
    classes=split.classes,
    plan=plan,
    shards=[result.shard for result in results],
    recoded=recode.describe() if recode else None,
  )
  _write(os.path.join(directory, records.MANIFEST), manifest.to_json())
  os.remove(os.path.join(directory, _NOTES))
  return manifest


def _read_lines(path: str) -> list[dict]:
  """Rows of a JSON-lines file; the last may be cut off by a kill."""
  rows = []
  try:
    with open(path, encoding='utf-8') as file:
      for line in file:
        if line.endswith('\n'):
          rows.append(json.loads(line))
  except FileNotFoundError:
    return []
  except ValueError as error:
    raise UserError(f'{path} is damaged: {error}') from error
  return rows


def _append_line(path: str, row: dict) -> None:
  with open(path, 'a', encoding='utf-8') as file:
    file.write(json.dumps(row) + '\n')


def _write_lines(path: str, rows: Iterable[dict]) -> None:
  _write(path, ''.join(json.dumps(row) + '\n' for row in rows))


def _write(path: str, text: str) -> None:
  """Writes a file that is either not there or complete."""
  with open(path + '.tmp', 'w', encoding='utf-8') as file:
    file.write(text)
  os.replace(path + '.tmp', path)
