"""Where a run starts: from scratch, from `init_from`, or where it stopped."""

import functools
import sys
from typing import Any

import jax
import ml_collections

from ijepa_jax import checkpoint, errors, sharding, train_step
from ijepa_jax.config import fields
from ijepa_jax.data.sources import Source


def make_meta(
  config: ml_collections.ConfigDict, source: Source
) -> dict[str, Any]:
  """What a checkpoint says of the run that made it."""
  origin = config.init_from
  return {
    'ijepa_jax': {
      'trained_here': origin is None or checkpoint.trained_here(origin),
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
  shardings = jax.tree.map(lambda x: x.sharding, _abstract_state(config, mesh))
  init = functools.partial(train_step.init_state, config)
  return jax.jit(init, out_shardings=shardings)()


def _abstract_state(
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
    UserError: the newest checkpoint cannot be read, or was made with another
      config or other data.
  """
  abstract = _abstract_state(config, mesh)
  step = checkpoints.latest_step()
  if step is not None:
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

  state = init_state(config, mesh)
  if config.init_from is not None:
    params, target = checkpoint.load_weights(config.init_from, abstract)
    _say(
      f'starting from the weights of {config.init_from}'
      + ('' if 'predictor' in params else ', which has no predictor: a new one')
    )
    state.params, state.target = state.params | params, target
  return state


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
