"""Speed of the input pipeline, in images, by stage and number of workers.

The yardstick is a bare loop without a framework: Pillow decodes a file that is
in memory already, crops it, and resizes the crop bilinearly. It takes turns
with everything else, and a share is of its speed in the same turn: of one loop
alone, and of as many at once as there are workers, which may be slower where
cores share caches and memory. All work on the same few records.

Speed is per second of CPU time, of all processes together: this is what a core
can do, however busy the machine is. Wall time is reported beside it.
"""

import concurrent.futures
import io
import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import grain
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from ijepa_jax import errors
from ijepa_jax.benchmark import record, report
from ijepa_jax.data import decode, fast_jpeg, masks, pipeline, transforms
from ijepa_jax.data.sources import Source

# Images in a batch, at most: more only take longer to measure.
_BATCH = 64
_WORKERS = (0, 1, 2)
_LENGTH = 1_281_167
# Turns that count, at least; one before them fills caches.
_FEWEST = 3
# Batches per loading process: before the clock starts, and timed.
_UNTIMED, _TIMED = 2, 6

STAGES = ('read', 'draw', 'decode', 'crop and resize', 'masks', 'batch')


class _Spent(NamedTuple):
  """Seconds per image: of CPU time, and by the clock."""

  cpu: float
  wall: float


class _Records:
  """Some records of a source, over and over, as a source of ImageNet's size.

  Grain takes up to a millisecond to shuffle a number below 64, and nobody
  trains on so few.
  """

  def __init__(self, source: Source, records: list[int]):
    self._source, self._records = source, records
    self.name, self.labels = source.name, source.labels
    self.epoch_length, self.fingerprint = _LENGTH, source.fingerprint

  def __len__(self) -> int:
    return _LENGTH

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self._source[self._records[index % len(self._records)]]

  def record_id(self, index: int) -> str:
    """See `sources.Source`."""
    return self._source.record_id(self._records[index % len(self._records)])


def measure(
  config: ConfigDict, source: Source, *, seconds: float
) -> dict[str, Any]:
  """Times the stages and the pipeline.

  Args:
    config: the run's config, resolved.
    source: its records; broken ones are passed over.
    seconds: start no turn after that time.

  Returns:
    Ready for JSON. `bare`, the bare loop, and `workers`, the pipeline by
    number of workers: images per second of CPU time (`cpu`) and by the clock
    (`wall`), medians with quartiles; for workers also, per CPU second, `share`
    of the bare loop alone and `share_at_once` of as many loops as workers, and
    `main_cpu`, microseconds per image that the main process spends to receive
    them. `stages`: microseconds per image, or None
    for a stage that the source does not have; with `share` of the sum.
  """
  config = config.copy_and_resolve_references()
  records = _readable(source, min(config.batch_size, _BATCH))
  config.batch_size = len(records)
  bench = _Bench(config, _Records(source, records))
  turns: list[dict[str, Any]] = []
  start = time.perf_counter()
  while len(turns) <= _FEWEST or time.perf_counter() - start < seconds:
    turns.append(bench.turn())
    report.say(f'input: turn {len(turns)}')
  return {
    'source': config.data.source,
    'decode': config.data.decode,
    'batch_size': config.batch_size,
    'image_size': config.model.image_size,
    'mean_file_bytes': bench.mean_bytes,
    'turns': len(turns) - 1,
    **_summary(turns[1:]),
  }


def table(result: dict[str, Any]) -> str:
  """The result of `measure` for people."""
  bare = result['bare']
  rows: list[tuple[str, ...]] = [
    ('', 'images/s/core', '', 'of a bare loop alone', 'of as many at once')
    + ('images/s by clock',)
  ]
  rows += [_row('bare Pillow loop', bare, '', '')]
  for workers, spread in result['workers'].items():
    shares = (_percent(spread[name]) for name in ('share', 'share_at_once'))
    rows.append(_row(f'{workers} workers', spread, *shares))
  stages: list[tuple[str, ...]] = [
    ('stage', 'us of CPU per image', '', 'share')
  ]
  for name, spread in result['stages'].items():
    if spread is None:
      stages.append((name, 'absent', '', ''))
      continue
    cpu = spread['cpu']
    share = f'{spread["share"]:.0%}'
    stages.append(
      # The rest of a noisy whole may be less than nothing.
      (name, report.number(max(cpu['median'], 0)), report.quartiles(cpu), share)
    )
  for workers, spread in result['workers'].items():
    if 'main_cpu' in spread:
      cpu = spread['main_cpu']
      stages.append(
        (
          f'hand-over, {workers} workers',
          report.number(cpu['median']),
          report.quartiles(cpu),
          '',
        )
      )
  return (
    f'input: {result["source"]}, decode={result["decode"]}, batches of '
    f'{result["batch_size"]} at {result["image_size"]} pixels, '
    f'{result["turns"]} turns\n'
    f'{report.columns(rows)}\n{report.columns(stages)}'
  )


def _row(name: str, spread: dict[str, Any], *shares: str) -> tuple[str, ...]:
  cpu = spread['cpu']
  wall = report.number(spread['wall']['median'])
  median = report.number(cpu['median'])
  return (name, median, report.quartiles(cpu), *shares, wall)


def _percent(share: dict[str, Any]) -> str:
  low, high = share['quartiles']
  return f'{share["median"]:.0%} ({low:.0%} - {high:.0%})'


class _Bench:
  """One turn times everything once, in the same order."""

  def __init__(self, config: ConfigDict, source: _Records):
    self._config, self._source = config, source
    self._dataset = pipeline.make_dataset(config, source)
    self._spec = pipeline.mask_spec(config)
    self._transform = pipeline.make_transform(config)
    self._images = [
      source[index]['image'] for index in range(config.batch_size)
    ]
    self._drawn = isinstance(self._images[0], np.ndarray)
    self.mean_bytes = (
      None if self._drawn else statistics.mean(map(len, self._images))
    )
    self._boxes: list[transforms.Box] = []
    self._step = 0

  def turn(self) -> dict[str, Any]:
    """Times every stage, the bare loop and the pipelines."""
    count = len(self._images)
    self._step += 1
    # Large crops take longer to resize: every turn has its own.
    rng = np.random.default_rng(self._step)
    sizes = [
      decode.full_size(decode.open_image(image)) for image in self._images
    ]
    self._boxes = [self._transform.box(size, rng) for size in sizes]
    spent = {
      'bare': _timed(self._bare, count),
      'read': _timed(self._read, count),
      'decode': _timed(self._decode, count),
      'load': _timed(self._load, count),
      'masks': _timed(self._masks, count),
      'batches': _timed(lambda: self._dataset[self._step], count),
    }
    pipelines = {}
    for workers in _WORKERS:
      # Again beside each: the machine may be busier than it was.
      alone = at_once = _timed(self._bare, count)
      if workers > 1:
        at_once = _timed(self._bare, count, cores=workers)
      spent_here, main = _pipeline(self._dataset, workers)
      pipelines[workers] = (spent_here, main, alone, at_once)
    return {'spent': spent, 'drawn': self._drawn, 'pipelines': pipelines}

  def _bare(self) -> None:
    side = self._config.model.image_size
    for index, (data, box) in enumerate(zip(self._images, self._boxes)):
      if self._drawn:  # no file: to draw it is part of the loop
        image = Image.fromarray(self._source[index]['image'])
      else:
        image = Image.open(io.BytesIO(data)).convert('RGB')
      edges = (box.left, box.top, box.left + box.width, box.top + box.height)
      crop = image.crop(edges)
      np.asarray(crop.resize((side, side), Image.Resampling.BILINEAR))

  def _read(self) -> None:
    for index in range(len(self._images)):
      self._source[index]

  def _decode(self) -> None:
    mode, side = self._config.data.decode, self._config.model.image_size
    for data, box in zip(self._images, self._boxes):
      opened = decode.open_image(data)
      decoded = None
      if mode != 'exact' and decode.is_jpeg(opened):
        decoded = fast_jpeg.decode_for(data, opened, box, side, mode)
      if decoded is None:
        decode.pixels(opened)

  def _load(self) -> None:
    rng = np.random.default_rng(self._step)
    for data in self._images:
      transforms.apply(data, self._transform, rng, self._config.data.decode)

  def _masks(self) -> None:
    masks.sample_masks(
      self._spec, self._config.seed, self._step, self._config.batch_size
    )


def _pipeline(dataset: grain.MapDataset, workers: int) -> tuple[_Spent, float]:
  """Seconds per image, and CPU seconds of the main process alone.

  Opened as in training. The clocks run between two batches that were waited
  for: nothing is ready then.
  """
  processes = max(1, workers)
  ours = {child.pid for child in multiprocessing.active_children()}
  last = (_UNTIMED + _TIMED) * processes
  with pipeline.batches(dataset, 0, 2 * last, workers) as batches:
    for _ in range(_UNTIMED * processes):
      next(batches)
    started = multiprocessing.active_children()
    children = [child.pid for child in started if child.pid not in ours]
    wall, main = time.perf_counter(), time.process_time()
    made = sum(map(_cpu_seconds, children))
    images = 0
    for _ in range(_TIMED * processes):
      images += len(next(batches)['image'])
    main = time.process_time() - main
    made = sum(map(_cpu_seconds, children)) - made
    wall = time.perf_counter() - wall
  return _Spent((main + made) / images, wall / images), main / images


def _timed(
  function: Callable[[], object], images: int, cores: int = 1
) -> _Spent:
  """Calls it, on several cores at once if asked to."""

  def cpu_seconds() -> float:
    # Of this thread: one that read ahead for a pipeline may still be at it.
    before = time.thread_time()
    function()
    return time.thread_time() - before

  wall = time.perf_counter()
  if cores == 1:
    cpu = cpu_seconds()
  else:
    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
      calls = [pool.submit(cpu_seconds) for _ in range(cores)]
      cpu = sum(call.result() for call in calls)
  wall = time.perf_counter() - wall
  return _Spent(cpu / images / cores, wall / images / cores)


def _cpu_seconds(process: int | None) -> float:
  """CPU time of another process so far; its clock's number is Linux's."""
  assert process is not None  # it was started
  return time.clock_gettime(~process << 3 | 2)


def _summary(turns: list[dict[str, Any]]) -> dict[str, Any]:
  """The parts of the result that come from the turns."""
  workers = {}
  for count in _WORKERS:
    pipelines = [turn['pipelines'][count] for turn in turns]
    all_spent, mains, alone, at_once = map(list, zip(*pipelines))
    workers[str(count)] = {
      **_speed(all_spent),
      'share': _share(alone, all_spent),
      'share_at_once': _share(at_once, all_spent),
    }
    if count:
      main = record.spread([1e6 * main for main in mains])
      workers[str(count)]['main_cpu'] = main
  rows = [_stages(turn['spent'], turn['drawn']) for turn in turns]
  stages: dict[str, Any] = {}
  for name in STAGES:
    if name not in rows[0]:
      stages[name] = None
      continue
    stages[name] = {
      'cpu': record.spread([1e6 * row[name].cpu for row in rows]),
      'wall': record.spread([1e6 * row[name].wall for row in rows]),
      'share': statistics.median(
        row[name].cpu / turn['spent']['batches'].cpu
        for row, turn in zip(rows, turns)
      ),
    }
  return {
    'bare': _speed([turn['spent']['bare'] for turn in turns]),
    'workers': workers,
    'stages': stages,
  }


def _stages(spent: dict[str, _Spent], drawn: bool) -> dict[str, _Spent]:
  """What each stage takes: some are the rest of a larger measurement."""
  stages = {'masks': spent['masks']}
  if drawn:
    stages['draw'] = spent['read']
    stages['crop and resize'] = spent['load']
  else:
    stages['read'], stages['decode'] = spent['read'], spent['decode']
    stages['crop and resize'] = _rest(spent['load'], spent['decode'])
  stages['batch'] = _rest(
    spent['batches'], spent['read'], spent['load'], spent['masks']
  )
  return stages


def _rest(whole: _Spent, *parts: _Spent) -> _Spent:
  return _Spent(
    whole.cpu - sum(part.cpu for part in parts),
    whole.wall - sum(part.wall for part in parts),
  )


def _share(bare: list[_Spent], spent: list[_Spent]) -> dict[str, Any]:
  """Of the bare loop's speed, turn by turn."""
  return record.spread([a.cpu / b.cpu for a, b in zip(bare, spent)])


def _speed(spent: list[_Spent]) -> dict[str, Any]:
  return {
    'cpu': record.spread([1 / seconds.cpu for seconds in spent]),
    'wall': record.spread([1 / seconds.wall for seconds in spent]),
  }


def _readable(source: Source, count: int) -> list[int]:
  """`count` records, spread over the source, that can be decoded."""
  size = len(source)
  candidates = np.random.default_rng(0).choice(
    size, min(size, 2 * count), replace=False
  )
  found: list[int] = []
  for index in map(int, candidates):
    try:
      decode.decode(source[index]['image'], (1, 1))
    except (decode.BadImage, OSError):
      continue
    found.append(index)
    if len(found) == count:
      break
  if not found:
    raise errors.DataError(f'{source.name}: no record can be read')
  return found
