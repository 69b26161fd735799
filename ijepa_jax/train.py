"""The training loop: restore, step, log, evaluate, save, stop."""

import collections
import contextlib
import json
import pathlib
from typing import NamedTuple

import jax
import ml_collections
import numpy as np

from ijepa_jax import (
  accelerators,
  checkpoint,
  compilation_cache,
  distributed,
  ending,
  errors,
  observe,
  optim,
  program,
  resume,
  rows,
  sharding,
  stop_signals,
  train_step,
)
from ijepa_jax import workdir as workdir_lib
from ijepa_jax.config import fields, validate
from ijepa_jax.data import bad_records, pipeline, sources
from ijepa_jax.metrics import timing

# Steps that may be under way on the device while the host goes on. Two keep
# the device busy; more would only delay news of a NaN and of Ctrl-C.
_RUN_AHEAD = 2

# What the processes of a run need not have in common.
_OF_A_HOST = ('config.data.path', 'config.data.workers', 'versions.python')


class _Pending(NamedTuple):
  """A step whose results have not been looked at yet."""

  step: int  # updates made, this one included
  metrics: dict[str, jax.Array]
  batch: dict[str, np.ndarray]


def train(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
  """Trains until the last step, or until a signal asks to stop.

  Args:
    config: validated.
    workdir: the run's directory; a run that stopped there is continued.

  Raises:
    UserError: see `errors` for the kinds and their exit codes.
  """
  # --- What to train, on what, and where --------------------------------
  validate.validate(config, jax.device_count())
  compilation_cache.enable(config.compilation_cache)
  program.require_attention(config)
  mesh = sharding.make_mesh(config)
  source = sources.training_source(config)
  steps_per_epoch = optim.steps_per_epoch(
    source.epoch_length, config.batch_size
  )
  schedules = optim.make_schedules(config, steps_per_epoch)
  last = len(schedules.lr)
  validate.check_warmup(config, last / steps_per_epoch)
  learner = train_step.Learner(config, sharding.constrain(mesh))
  held = rows.held(mesh, config.batch_size)
  dataset = pipeline.make_dataset(config, source, held)
  meta = resume.make_meta(config, source)
  distributed.require_same(
    {
      name: value
      for name, value in fields.flatten(meta).items()
      if name not in _OF_A_HOST
    }
  )

  with contextlib.ExitStack() as stack:
    # --- From scratch, or from where it stopped ---------------------------
    workdir_lib.make(workdir)
    if jax.process_index() == 0:
      stack.enter_context(workdir_lib.Lock(workdir))
    distributed.require_shared(workdir)
    checkpoints = stack.enter_context(
      contextlib.closing(
        checkpoint.Checkpoints(
          workdir,
          keep=config.checkpoint.keep,
          keep_period=config.checkpoint.keep_period,
        )
      )
    )
    # Inside of the checkpoints, which wait for the others when they close.
    stack.enter_context(ending.announcing())
    stack.enter_context(checkpoints.naming_last_good())
    state = resume.restore_or_init(config, checkpoints, source, mesh)
    first = int(state.step)
    observer = stack.enter_context(
      contextlib.closing(
        observe.Observer(
          config,
          workdir,
          first=first,
          last=last,
          steps_per_epoch=steps_per_epoch,
        )
      )
    )
    distributed.meet('state')
    observer.begin(state, source, learner, mesh)
    with observer.timed(f'compiling for {program.describe(config, mesh)}'):
      step_fn = program.compile_step(config, learner, state, mesh)
    norms_fn = program.compile_norms(mesh)
    distributed.meet('step')

    # --- What the loop looks at -------------------------------------------
    peak = accelerators.peak_flops(jax.devices()[0].device_kind)
    interval = timing.Interval(peak and peak * jax.device_count())
    ledger = bad_records.BadRecords(
      workdir / bad_records.file_name(jax.process_index()),
      source,
      max_share=config.data.max_bad_share,
      log=observer.log,
      parts=config.batch_size // len(held),
      count=distributed.counter('bad_records'),
    )
    stop = stack.enter_context(stop_signals.StopSignals(jax.process_count()))
    batches = stack.enter_context(
      pipeline.batches(dataset, first, last, config.data.workers)
    )
    pending: collections.deque[_Pending] = collections.deque()

    def collect() -> None:
      """Looks at the oldest step under way; waits for it if need be."""
      step, metrics, batch = pending.popleft()
      values = {k: float(v) for k, v in jax.device_get(metrics).items()}
      _require_finite(step, values, batch, source, workdir, checkpoints)
      interval.add(config.batch_size, program.useful_flops(config, batch))
      observer.step(step, values)
      if step % config.log.every == 0 or step == last:
        rates = schedules.metrics(step - 1) | interval.metrics()
        observer.report(step, values, rates)
        interval.restart()

    # --- The loop ---------------------------------------------------------
    interval.restart()
    for step in range(first + 1, last + 1):
      with interval.waiting():
        batch = next(batches)
      ledger.check(batch)
      checkpoints.check()
      if step == 1:
        observer.draw_masks(batch)
      device_batch = sharding.put_batch(mesh, step_fn.cut(batch))
      state, metrics = step_fn(state, device_batch, schedules.at(step - 1))
      done = step == last
      stopping = not done and (checkpoints.preempted(step) or stop.received)
      evaluating = done or _is_due(step, config.eval.every)
      saving = done or stopping or _is_due(step, config.checkpoint.every)
      if evaluating or saving or _is_due(step, config.log.every):
        # The loss is of the parameters before the update, these are after it.
        metrics |= norms_fn(state)
      pending.append(_Pending(step, metrics, batch))
      while len(pending) > _RUN_AHEAD:
        collect()
      if evaluating or saving:
        while pending:  # never judge or save a state that is not finite
          collect()
      if stopping:  # there may be little time
        observer.flush()
        checkpoints.save(step, state, meta)
      if evaluating:
        with interval.paused():
          observer.evaluate(step, state)
      # After the evaluation: a run that is killed in between repeats both.
      if saving and not stopping:
        observer.flush()
        checkpoints.save(step, state, meta)
      if stopping:
        checkpoints.wait()
        raise errors.Interrupted(
          f'stopped by {stop.received or "a signal"} at step {step}, saved '
          f'in {checkpoints.path(step)}; the same command continues'
        )

    checkpoints.wait()
    observer.finish(checkpoints.path(last))


def _is_due(step: int, every: int) -> bool:
  """Whether something that happens every so many steps (0: never) does now."""
  return every > 0 and step % every == 0


def _require_finite(
  step: int,
  values: dict[str, float],
  batch: dict[str, np.ndarray],
  source: sources.Source,
  workdir: pathlib.Path,
  checkpoints: checkpoint.Checkpoints,
) -> None:
  """Stops a run that diverged, and keeps what is needed to look into it."""
  bad = [name for name, value in values.items() if not np.isfinite(value)]
  if not bad:
    return
  process = jax.process_index()
  file = workdir / f'nonfinite_step_{step}_process_{process}.json'
  records = batch['record'].tolist()
  kept = {
    'step': step,
    'not_finite': bad,
    'records': records,
    'ids': [source.record_id(record) for record in records],
  }
  file.write_text(json.dumps(kept, indent=2) + '\n')
  checkpoints.wait()
  good = checkpoints.latest_step()
  raise errors.NonFiniteError(
    f"{', '.join(bad)} is not finite at step {step}; the batch's records "
    f'are named in {file}; last good checkpoint: '
    f'{checkpoints.path(good) if good is not None else "none"}; try a lower '
    'optim.lr, optim.clip=1 or model.dtype=float32'
  )
