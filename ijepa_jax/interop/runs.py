"""Our own checkpoints: a run's, or what `convert --to=orbax` has written."""

import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from ijepa_jax import checkpoint_files, errors, optim
from ijepa_jax.interop import adapt, described, names, weights
from ijepa_jax.interop.described import Described
from ijepa_jax.interop.tensors import Tensors
from ijepa_jax.interop.weights import Architecture, Moments, Parameters, Weights
from ijepa_jax.models import sizes

_VARIANT = described.Kind(
  f'one of {", ".join(sizes.SIZES)}',
  lambda x: isinstance(x, str) and x in sizes.SIZES,
)


def open_run(folder: epath.Path, heads: int | None) -> Weights:
  """Opens a checkpoint.

  Args:
    folder: of the one checkpoint.
    heads: attention heads, if the user says so.

  Raises:
    UserError: it cannot be read, or its description is of another model.
  """
  state = checkpoint_files.State(folder)
  found = _tensors(state, str(folder))
  target = found.section('target.')
  context = found.section('params.encoder.')
  first = target if target.shapes else context
  if not first.shapes:
    raise errors.UserError(f'{folder} holds no encoder')
  is_run = 'architecture' not in state.meta.values
  config = state.meta.section('config')
  architecture = (_of_run if is_run else _of_converted)(state.meta, first)
  if heads not in (None, architecture.size.heads):
    raise errors.UserError(
      f'{folder} has {weights.counted(architecture.size.heads, "head")}, '
      f'heads={heads} was given'
    )
  shapes = weights.shapes(architecture.encoder())
  encoders = [
    adapt.parameters(part, names.FLAX_ENCODER, shapes)
    for part in (target, context)
    if part.shapes
  ]
  predictor = predictor_size = moments = None
  said = (config if is_run else state.meta).section('predictor')
  part = found.section('params.predictor.')
  if part.shapes and (is_run or said.values):
    predictor, predictor_size = adapt.our_predictor(
      part, said, architecture, architecture.size.heads if is_run else None
    )
    trained = {'encoder': shapes, 'predictor': predictor.shapes}
    moments = _moments(found, trained)
  mark = described.read_mark(state.mark())
  if is_run:
    mark['progress'] = _progress(state.meta, _count(found, 'step'))
  return Weights(
    source=str(folder),
    format='ours (Orbax)',
    architecture=architecture,
    target=encoders[0],
    context=encoders[-1],
    predictor=predictor,
    predictor_size=predictor_size,
    moments=moments,
    init_std=config.section('model').get('init_std', described.NUMBER),
    **mark,
  )


def _tensors(state: checkpoint_files.State, path: str) -> Tensors:
  paths = {name.replace('/', '.'): name for name in state.shapes}
  shapes = {name: state.shapes[path] for name, path in paths.items()}
  return Tensors(path, shapes, lambda name: state.read(paths[name]))


def _of_converted(meta: Described, encoder: Tensors) -> Architecture:
  """The architecture that `convert` has written down."""
  said = meta.section('architecture')
  architecture = adapt.encoder_size(
    encoder,
    names.FLAX_ENCODER,
    said.require('heads', described.SIZE),
    said.name('heads'),
  )
  said.agree(architecture.to_dict(), whole=True)
  return architecture


def _of_run(meta: Described, encoder: Tensors) -> Architecture:
  """The architecture by a run's config."""
  if 'config' not in meta.values:
    raise errors.UserError(
      f'{meta.path} does not say what model it is of: expected config or '
      'architecture'
    )
  said = meta.section('config').section('model')
  variant = said.require('variant', _VARIANT)
  size = sizes.SIZES[variant]
  architecture = adapt.encoder_size(
    encoder, names.FLAX_ENCODER, size.heads, said.name('variant')
  )
  if architecture.size != size:
    raise said.wrong('variant', 'the size that its tensors have')
  told = architecture.to_dict()
  said.agree({k: told[k] for k in ('patch_size', 'image_size')}, whole=True)
  return architecture


def _moments(
  found: Tensors, trained: Mapping[str, Mapping[str, tuple[int, ...]]]
) -> Moments | None:
  """Adam's moments, wherever they are in the optimiser's chain."""
  prefixes = {
    match[2]: match[1]
    for name in found.shapes
    if (match := re.match(r'(opt_state\..*?)(mu|nu)\.encoder\.', name))
  }
  if prefixes.keys() != {'mu', 'nu'}:
    return None

  def moment(name: str) -> dict[str, Parameters]:
    held = {}
    for part, shapes in trained.items():
      moving = {k: v for k, v in shapes.items() if k != 'pos_embed'}
      table = names.FLAX_ENCODER if part == 'encoder' else names.FLAX_PREDICTOR
      held[part] = adapt.parameters(
        found.section(f'{prefixes[name]}{name}.{part}.'), table, moving
      )
    return held

  count = _count(found, f'{prefixes["mu"]}count')
  return Moments(count, mean=moment('mu'), square=moment('nu'))


def _count(found: Tensors, name: str) -> int:
  """A single number; `Tensors.read` would round large ones."""
  if found.shapes.get(name) != ():
    raise errors.UserError(f'{found.path}: {name} is not a single number')
  return int(found.load(name))


def _progress(meta: Described, step: int) -> dict[str, Any]:
  """How far training was; the epoch where the run says how long one is."""
  data, config = meta.section('data'), meta.section('config')
  length = data.get('epoch_length', described.SIZE)
  if length is None:
    return {'step': step}
  per_epoch = optim.steps_per_epoch(
    length, config.require('batch_size', described.SIZE)
  )
  return {'step': step, 'epoch': step // per_epoch}
