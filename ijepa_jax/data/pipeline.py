"""The input pipeline: records to batches with masks, on the host.

Everything random is drawn from (seed, position in the stream), and batch `i`
is a function of the step `i`: the same batches come out, row by row, for any
number of workers and of processes; resuming is slicing.
"""

import atexit
import contextlib
import dataclasses
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator

import grain
import ml_collections
import numpy as np

from ijepa_jax import errors
from ijepa_jax.data import masks as masks_lib
from ijepa_jax.data import transforms, watch
from ijepa_jax.data.sources import Source

# Batches that a worker (or the reading thread) keeps ready.
_READ_AHEAD = 2
# Separates the crops' random stream from others made of the same seed.
_STREAM = 0x63726F70


@dataclasses.dataclass(frozen=True)
class _Records:
  """The record numbers of this process's rows of a batch."""

  stream: grain.MapDataset  # endless
  batch_size: int
  rows: np.ndarray

  def __call__(self, step: int) -> np.ndarray:
    positions = step * self.batch_size + self.rows
    return np.array([self.stream[position] for position in positions.tolist()])


@dataclasses.dataclass(frozen=True)
class _Load:
  """Record numbers of this process's rows of a batch to cropped images.

  A whole batch, because that is quicker than Grain's batches of images: each
  is written once, into its place.
  """

  source: Source
  transform: transforms.TrainTransform
  decode: str
  seed: int
  batch_size: int
  rows: np.ndarray

  def __call__(self, step: int, records: np.ndarray) -> dict[str, np.ndarray]:
    size, side = len(records), self.transform.image_size
    image = np.empty((size, side, side, 3), np.uint8)
    used = records.astype(np.int64)
    bad = np.zeros(size, np.int32)
    positions = step * self.batch_size + self.rows
    # All at once: one by one, between two images, they take four times as long.
    generators = [
      np.random.default_rng((_STREAM, self.seed, position))
      for position in positions.tolist()
    ]
    for row, record in enumerate(records.tolist()):
      rng = generators[row]
      try:
        loaded = transforms.load(
          self.source, record, self.transform, rng, self.decode
        )
      except errors.DataError:
        # An exception would end this worker's share of the stream without a
        # word: `BadRecords` in the main process sees the number and stops.
        image[row], bad[row] = 0, transforms.GIVEN_UP
        continue
      image[row] = loaded.image
      used[row], bad[row] = loaded.index, loaded.bad
    return {'image': image, 'record': used, 'bad': bad}


@dataclasses.dataclass(frozen=True)
class _AddMasks:
  """Draws the global batch's masks and keeps this process's rows."""

  spec: masks_lib.MaskSpec
  seed: int
  batch_size: int
  rows: np.ndarray

  def __call__(self, step: int, batch: dict) -> dict[str, np.ndarray]:
    masks = masks_lib.sample_masks(self.spec, self.seed, step, self.batch_size)
    return {
      **batch,
      'context': masks.context[self.rows],
      'context_length': masks.context_length[self.rows],
      'target': masks.target[self.rows],
      'target_length': masks.target_length[self.rows],
    }


def mask_spec(config: ml_collections.ConfigDict) -> masks_lib.MaskSpec:
  """The masks of a resolved config."""
  grid = config.model.image_size // config.model.patch_size
  return masks_lib.MaskSpec(grid, **config.mask)


def make_transform(
  config: ml_collections.ConfigDict,
) -> transforms.TrainTransform:
  """The crops and augmentations of a config."""
  return transforms.TrainTransform(
    image_size=config.model.image_size,
    crop_scale=config.data.crop_scale,
    flip=config.data.flip,
    color_jitter=config.data.color_jitter,
    blur=config.data.blur,
  )


def make_dataset(
  config: ml_collections.ConfigDict,
  source: Source,
  rows: np.ndarray | None = None,
) -> grain.MapDataset:
  """An endless dataset whose element `i` is this process's part of batch `i`.

  Args:
    config: the run's config, resolved.
    source: the records.
    rows: the rows of each batch that this process holds; None: all.

  Returns:
    Dicts of `image` (B, S, S, 3) uint8, `context` (B, K), `context_length`
    (B,), `target` (B, M, T), `target_length` (B,) int32; and for the host
    `record` (B,) int64, the record that was used, and `bad` (B,) int32, how
    many broken ones just before it were skipped, or `transforms.GIVEN_UP`.
  """
  if rows is None:
    rows = np.arange(config.batch_size)
  stream = grain.MapDataset.range(len(source)).shuffle(config.seed).repeat()
  records = _Records(stream, config.batch_size, rows)
  load = _Load(
    source,
    make_transform(config),
    config.data.decode,
    config.seed,
    config.batch_size,
    rows,
  )
  add_masks = _AddMasks(mask_spec(config), config.seed, config.batch_size, rows)
  return (
    grain.MapDataset.range(len(stream) // config.batch_size)
    .map(records)
    .map_with_index(load)
    .map_with_index(add_masks)
  )


@contextlib.contextmanager
def batches(
  dataset: grain.MapDataset, start: int, stop: int, workers: int
) -> Iterator[Iterator[dict[str, np.ndarray]]]:
  """Iterates over batches `start` to `stop`, read ahead in the background.

  Args:
    dataset: from `make_dataset`.
    start: first batch.
    stop: batch to stop before.
    workers: Grain worker processes; 0 reads in a thread of this process.

  Raises:
    LostProcess: from the iterator, when workers are gone.
  """
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_READ_AHEAD)
  data = dataset[start:stop].to_iter_dataset(options)
  if workers:
    data = data.mp_prefetch(
      grain.MultiprocessingOptions(
        num_workers=workers, per_worker_buffer_size=_READ_AHEAD
      ),
      worker_init_fn=_init_worker,
    )
  iterator = iter(data)
  try:
    if workers:
      with contextlib.closing(watch.Watched(iterator)) as watched:
        yield watched
    else:
      yield iterator
  finally:
    # Or shared memory of batches under way is left behind.
    iterator.close()
    if workers:
      atexit.register(_release_batches)


def _init_worker(worker: int, workers: int) -> None:
  """Workers live exactly as long as the main process.

  They outlive Ctrl-C and SIGTERM, which the main process answers by saving;
  and they end when it is killed, which Grain leaves to the parent.
  """
  del worker, workers
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _release_batches() -> None:
  """Frees the last batches before Python complains that nobody did.

  Grain's iterators are cyclic garbage that holds a batch, and Grain unlinks
  shared memory in a thread, one array after the other. It has no public join;
  what is done last is done after all others.
  """
  gc.collect()
  unlinking = grain.multiprocessing.SharedMemoryArray._del_thread_pool
  if unlinking is not None:
    unlinking.apply(int)


def _end_with_parent() -> None:
  parent = multiprocessing.parent_process()
  if parent is not None:
    parent.join()
    os._exit(1)
