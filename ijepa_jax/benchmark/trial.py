"""The training step, ready to be timed: the real program on real masks.

The images are noise, because no pixel changes how long a step takes. Steps run
as in the training loop, two of them under way while the host makes the next,
and the time of a step is the time between two results.
"""

import collections
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from ijepa_jax import program, resume, sharding, train_step
from ijepa_jax.benchmark import report
from ijepa_jax.config import validate
from ijepa_jax.data import masks, pipeline

_RUN_AHEAD = 2  # as in `train`
# Measured at least, however short the time that was given.
_FEWEST = 3
# Seconds between two lines of progress.
_PROGRESS = 10.0


class Timed(NamedTuple):
  """Some steps, in seconds each."""

  steps: list[float]
  put: list[float]  # the host hands over the batch
  dispatch: list[float]  # the host starts the step


class Trial:
  """The compiled step of a config with its state, ready to be timed."""

  def __init__(self, config: ConfigDict):
    """Makes the state and compiles the step.

    Args:
      config: the run's config, resolved.

    Raises:
      UserError: it cannot run on these devices.
    """
    validate.validate(config, jax.device_count())
    program.require_attention(config)
    self.peak_before = peak_bytes()
    self._mesh = sharding.make_mesh(config)
    self.config = config
    self.name = name_of(config, self._mesh)
    self.state = resume.init_state(config, self._mesh)
    learner = train_step.Learner(config, sharding.constrain(self._mesh))
    report.say(f'step: compiling {self.name}')
    start = time.perf_counter()
    self.compiled = program.compile_step(
      config, learner, self.state, self._mesh
    )
    self.compile_seconds = time.perf_counter() - start
    self._steps = 0
    self.spec = pipeline.mask_spec(config)
    side = config.model.image_size
    self._images = np.random.default_rng(config.seed).integers(
      0, 256, (config.batch_size, side, side, 3), np.uint8
    )
    self._schedule = small_schedule(config)
    self.loss = float('nan')

  def run(
    self,
    *,
    warmup: int = 0,
    steps: int | None = None,
    seconds: float = float('inf'),
    until: Callable[[], bool] = lambda: False,
  ) -> Timed:
    """Trains on, and times it.

    Args:
      warmup: steps before those that count.
      steps: that count, at most; None: no limit.
      seconds: stop when they have passed, but not before a few steps.
      until: stop when it says so, at once.
    """
    timed = Timed([], [], [])
    under_way: collections.deque[dict[str, jax.Array]] = collections.deque()
    jax.block_until_ready(self.state)
    begin = told = last = time.perf_counter()

    def finish() -> None:
      nonlocal last
      metrics = jax.block_until_ready(under_way.popleft())
      now = time.perf_counter()
      timed.steps.append(now - last)
      last = now
      self.loss = float(metrics['loss'])

    started = 0
    while (steps is None or started < warmup + steps) and not until():
      if started == warmup:
        begin = time.perf_counter()
      passed = time.perf_counter() - begin
      if started >= warmup + _FEWEST and passed > seconds:
        break
      batch = self.batch()
      before = time.perf_counter()
      device_batch = sharding.put_batch(self._mesh, self.compiled.cut(batch))
      put = time.perf_counter()
      self.state, metrics = self.compiled(
        self.state, device_batch, self._schedule
      )
      timed.put.append(put - before)
      timed.dispatch.append(time.perf_counter() - put)
      started += 1
      under_way.append(metrics)
      if len(under_way) > _RUN_AHEAD:
        finish()
      if time.perf_counter() - told > _PROGRESS:
        told = time.perf_counter()
        report.say(f'step: {len(timed.steps)} done')
    while under_way:
      finish()
    return Timed(*(values[warmup:] for values in timed))

  def images_per_second(
    self, *, warmup: int = 2, steps: int = 50, seconds: float = 30.0
  ) -> float:
    """The median of some steps."""
    timed = self.run(warmup=warmup, steps=steps, seconds=seconds)
    return self.config.batch_size / float(np.median(timed.steps))

  def batch(self) -> dict[str, np.ndarray]:
    """The fields of the next batch that go to the device."""
    config = self.config
    drawn = masks.sample_masks(
      self.spec, config.seed, self._steps, config.batch_size
    )
    self._steps += 1
    return {
      name: self._images if name == 'image' else getattr(drawn, name)
      for name in train_step.DEVICE_FIELDS
    }


def small_schedule(config: ConfigDict) -> dict[str, np.float32]:
  """Scalars of an update: small, so that noise keeps the state finite."""
  return {
    'lr': np.float32(config.optim.start_lr),
    'weight_decay': np.float32(config.optim.weight_decay),
    'one_minus_momentum': np.float32(1 - config.optim.ema),
  }


def name_of(config: ConfigDict, mesh: jax.sharding.Mesh) -> str:
  """The config in a line."""
  model, predictor = config.model, config.predictor
  parts = config.optim.accumulate
  batch = f'{config.batch_size}' + (f' in {parts} parts' if parts > 1 else '')
  return (
    f'{model.variant}/{model.patch_size} at {model.image_size}, batch {batch}, '
    f'predictor {predictor.width} x {predictor.depth}; '
    f'{program.describe(config, mesh)}'
  )


def peak_bytes() -> int | None:
  """The largest peak of a device since the process began, if it tells."""
  found = [(x.memory_stats() or {}) for x in jax.local_devices()]
  peaks = [stats.get('peak_bytes_in_use') for stats in found]
  return max((peak for peak in peaks if peak is not None), default=None)
