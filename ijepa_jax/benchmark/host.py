"""What the host does in every step besides starting it, in seconds.

The parts of the training loop that `trial` leaves out, as they are: to fetch a
batch that is ready, and to take note of a step's results.
"""

import contextlib
import io
import pathlib
import tempfile
import time
from typing import Any

import grain
import numpy as np
from ml_collections import ConfigDict

from ijepa_jax import observe, optim, program
from ijepa_jax.benchmark import record
from ijepa_jax.data import pipeline
from ijepa_jax.metrics import timing

# Batches fetched, and rows of metrics written, that count.
_BATCHES, _ROWS = 8, 20
# Of a data set like ImageNet: the schedules are tables of that length.
_STEPS_PER_EPOCH = 1000


def fetch(batch: dict[str, np.ndarray], workers: int) -> dict[str, Any]:
  """Seconds to fetch a batch that is ready.

  Args:
    batch: what comes out.
    workers: 0, or any other number for one worker process: more of them are
      asked in turn.

  Returns:
    Median and quartiles.
  """
  # A lambda travels to the worker by value, which then need not import JAX.
  dataset = grain.MapDataset.range(10 * _BATCHES).map(lambda _: dict(batch))
  seconds = []
  with pipeline.batches(dataset, 0, len(dataset), min(1, workers)) as batches:
    held = next(batches)  # the worker has started
    for _ in range(_BATCHES):
      time.sleep(0.25)  # so that one is ready
      start = time.perf_counter()
      # As in the loop, the batch before is let go of meanwhile.
      held = next(batches)
      seconds.append(time.perf_counter() - start)
  del held
  return record.spread(seconds)


def log(
  config: ConfigDict, values: dict[str, float], batch: dict[str, np.ndarray]
) -> dict[str, Any]:
  """Seconds per step to note its results, and to write a row when one is due.

  Args:
    config: says how often that is, and whether TensorBoard gets the rows too;
      Weights & Biases gets none.
    values: the metrics of a step.
    batch: with the lengths of the masks.

  Returns:
    Median and quartiles over the rows, each with the steps that it stands for.
  """
  config = config.copy_and_resolve_references().unlock()
  config.log.wandb = False  # no run of its own for a benchmark
  schedules = optim.make_schedules(config, _STEPS_PER_EPOCH)
  interval = timing.Interval(None)
  every = config.log.every
  seconds = []
  with contextlib.ExitStack() as stack:
    workdir = stack.enter_context(tempfile.TemporaryDirectory())
    # What a terminal costs is its own affair.
    stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
    observer = observe.Observer(
      config,
      pathlib.Path(workdir),
      first=0,
      last=len(schedules.lr),
      steps_per_epoch=_STEPS_PER_EPOCH,
    )
    stack.enter_context(contextlib.closing(observer))
    for row in range(_ROWS):
      start = time.perf_counter()
      for step in range(row * every + 1, (row + 1) * every + 1):
        schedules.at(0)
        interval.add(config.batch_size, program.useful_flops(config, batch))
        observer.step(step, values)
      rates = schedules.metrics(0) | interval.metrics()
      observer.report(step, values, rates)
      interval.restart()
      seconds.append((time.perf_counter() - start) / every)
  return record.spread(seconds)
