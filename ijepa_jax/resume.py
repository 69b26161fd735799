"""Where a run starts: from scratch, from `init_from`, or where it stopped."""

import functools
import sys
from typing import Any

import jax
import ml_collections
from etils import epath

from ijepa_jax import checkpoint, checkpoint_files, errors, sharding, train_step
from ijepa_jax.config import fields
from ijepa_jax.data.sources import Source
from ijepa_jax.metrics import writers


def make_meta(
  config: ml_collections.ConfigDict, source: Source
) -> dict[str, Any]:
  """What a checkpoint says of the run that made it."""
  origin = config.init_from
  return {
    'ijepa_jax': {
      'trained_here': origin is None or checkpoint_files.trained_here(origin),
      'crop': config.eval.crop,
    },
    'config': config.to_dict(),
    'versions': checkpoint.versions(),
    'data': {
      'name': source.name,
      'fingerprint': source.fingerprint,
      'epoch_length': source.epoch_length,
    },
  }


def init_state(
  config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh
) -> train_step.TrainState:
  """The state of a new run, made where it lives."""
  shardings = jax.tree.map(lambda x: x.sharding, abstract_state(config, mesh))
  init = functools.partial(train_step.init_state, config)
  return jax.jit(init, out_shardings=shardings)()


def abstract_state(
  config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh
) -> train_step.TrainState:
  """Shapes, types and shardings of a state."""
  shapes = jax.eval_shape(lambda: train_step.init_state(config))
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    sharding.state_shardings(mesh, shapes),
  )


def restore_or_init(
  config: ml_collections.ConfigDict,
  checkpoints: checkpoint.Checkpoints,
  source: Source,
  mesh: jax.sharding.Mesh,
) -> train_step.TrainState:
  """The state to train from, spread over the mesh.

  Args:
    config: the run's config.
    checkpoints: of the run's directory.
    source: the training data, to see whether it is still the same.
    mesh: where the state shall live.

  Raises:
    UserError: the checkpoint cannot be read or was changed, or was made with
      another config or other data; or all are gone.
  """
  abstract = abstract_state(config, mesh)
  step = _choose(checkpoints, config.checkpoint.step)
  if step is not None:
    checkpoints.verify(step)
    meta = checkpoints.meta(step)
    _require_same_run(config, source, meta, checkpoints.path(step))
    _say(f'resuming from {checkpoints.path(step)}')
    changed = {
      name: (old, new)
      for name, new in checkpoint.versions().items()
      if (old := meta['versions'].get(name)) != new
    }
    for name, (old, new) in changed.items():
      _say(f'{name} is {new}, was {old}: results may differ in the last digits')
    return checkpoints.restore(step, abstract)

  _require_new(config, checkpoints.folder.parent)
  state = init_state(config, mesh)
  if config.init_from is not None:
    params, target = checkpoint_files.load_weights(config.init_from, abstract)
    _say(
      f'starting from the weights of {config.init_from}'
      + ('' if 'predictor' in params else ', which has no predictor: a new one')
    )
    state.params, state.target = state.params | params, target
  return state


def _choose(
  checkpoints: checkpoint.Checkpoints, wanted: int | None
) -> int | None:
  """The step to continue from; None: there is no checkpoint.

  Args:
    checkpoints: of the run; those after the chosen step are moved away.
    wanted: `checkpoint.step`. A run goes back once: started again with the
      same command, it continues from what it has saved since.
  """
  steps = checkpoints.steps()
  if wanted is None:
    return steps[-1] if steps else None
  if steps and _went_back(checkpoints, steps[-1], wanted):
    return steps[-1]
  if wanted not in steps:
    known = ', '.join(map(str, steps)) or 'there is none'
    raise errors.UserError(
      f'checkpoint.step={wanted}: no such checkpoint in {checkpoints.folder}; '
      f'expected one of those there: {known}'
    )
  newer = [step for step in steps if step > wanted]
  if newer:
    metrics = checkpoints.folder.parent / writers.FILE_NAME
    aside = checkpoints.set_aside(newer, metrics)
    _say(
      f'going back to step {wanted}; the checkpoints of later steps '
      f'({", ".join(map(str, newer))}) and a copy of {metrics.name} are in '
      f'{aside}'
    )
  return wanted


def _went_back(
  checkpoints: checkpoint.Checkpoints, newest: int, wanted: int
) -> bool:
  """Whether a checkpoint was saved after the run went back."""
  try:
    checkpoints.verify(newest)
    config = checkpoints.meta(newest)['config']
    return config['checkpoint'].get('step') == wanted
  except errors.UserError:
    return False  # it is damaged: all the more reason to go back


def _require_new(
  config: ml_collections.ConfigDict, workdir: epath.Path
) -> None:
  """Refuses to start again from nothing where a run has saved before.

  A save has to end before the next one begins, so after two of them there is
  a checkpoint, unless someone has taken it away.
  """
  file = workdir / writers.FILE_NAME
  if not file.exists():
    return
  last = max((row['step'] for row in writers.read_metrics(file)), default=0)
  if last > 2 * config.checkpoint.every:
    raise errors.UserError(
      f'{file} has rows up to step {int(last)}, but {workdir} holds no '
      'checkpoint: put them back, or give another --workdir to start anew'
    )


def _require_same_run(
  config: ml_collections.ConfigDict,
  source: Source,
  meta: dict[str, Any],
  path: str,
) -> None:
  """Refuses a change after which the run would not be the same run."""
  changed = fields.changed_fields(meta['config'], config)
  if meta['data']['fingerprint'] != source.fingerprint:
    changed.append(
      f'the data: {meta["data"]["name"]} was used, {source.name} is not the '
      'same'
    )
  if changed:
    raise errors.UserError(
      f'{path} cannot be resumed with {"; ".join(changed)}; undo this, or '
      'start a new run with another --workdir and --config.init_from='
      f'{path}'
    )


def _say(message: str) -> None:
  if jax.process_index() == 0:
    print(message, file=sys.stderr, flush=True)
