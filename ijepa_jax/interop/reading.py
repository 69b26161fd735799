"""Recognises a file or directory of weights by its content, and opens it."""

import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
import numpy as np

from ijepa_jax import checkpoint, errors, optim, train_step
from ijepa_jax.data.sources import existing_path
from ijepa_jax.interop import adapt, names, reference, tensors, weights
from ijepa_jax.interop.tensors import Tensors
from ijepa_jax.interop.weights import Architecture, Moments, Parameters, Weights
from ijepa_jax.models import sizes

# Heads of other tasks; they are no part of an encoder.
_HEADS = ('pooler.', 'classifier.', 'head.')
# What a state dict may be wrapped in: DDP, training frameworks, and
# IJepaForImageClassification.
_WRAPPERS = ('module.', 'state_dict.', 'model.', 'ijepa.')

_HUGGING_FACE = 'Hugging Face'

# Formats of a single encoder, told apart by the name of this parameter.
_TELLS = 'trunk.blocks.norm1.scale'
_TABLES = (
  ('flax', names.FLAX_ENCODER),
  ('the reference, or timm', names.ENCODER),
  (_HUGGING_FACE, names.HUGGINGFACE),
  (_HUGGING_FACE, names.HUGGINGFACE_5),
)


def open_weights(
  path: str, heads: int | None = None, field: str = 'path'
) -> Weights:
  """Opens weights in any format.

  Args:
    path: a run's directory or a checkpoint of ours, a directory of `flax`,
      Hugging Face or timm weights, or a file of safetensors or PyTorch.
    heads: attention heads, where neither file nor width tell.
    field: what the user calls `path`.

  Returns:
    The weights; numbers are read when they are asked for.

  Raises:
    UserError: nothing there, unknown, or damaged.
  """
  if '://' not in path:  # paths of a bucket are left as they are
    path = existing_path(path, field)
  if (folder := checkpoint.find(path)) is not None:
    return _open_orbax(checkpoint.State(folder), str(folder), heads)
  file = tensors.find(path)
  if file is None:
    raise errors.UserError(
      f'{field}: {path} holds no weights: expected a run directory, a '
      'checkpoint of ours, or a directory with model.safetensors or '
      'pytorch_model.bin'
    )
  # Beside a file of another name, config.json belongs to something else.
  named = os.path.isdir(path) or os.path.basename(path) in tensors.IN_DIRECTORY
  config = _read_config(os.path.dirname(file)) if named else {}
  found = tensors.open_file(file)
  if reference.is_reference(found):
    return reference.open_reference(found, heads)
  return _open_encoder(found, config, heads)


def _read_config(folder: str) -> dict[str, Any]:
  path = os.path.join(folder, 'config.json')
  if not os.path.exists(path):
    return {}
  try:
    with open(path, encoding='utf-8') as file:
      config = json.load(file)
  except (OSError, ValueError) as error:
    raise errors.UserError(f'{path} cannot be read: {error}') from error
  return config if isinstance(config, dict) else {}


def _open_encoder(
  found: Tensors, config: Mapping[str, Any], heads: int | None
) -> Weights:
  """A file with a single encoder."""
  found, left_out = _unwrap(found)
  recognised = (
    (format, table)
    for format, table in _TABLES
    for entry in table
    if entry.ours == _TELLS and entry.names(0)[0] in found.shapes
  )
  format, table = next(recognised, (None, ()))
  if format is None:
    some = ', '.join(list(found.shapes)[:3])
    raise errors.UserError(
      f'{found.path} holds no I-JEPA encoder: its tensors are called {some}, '
      '...; expected the names of ours, the reference, Hugging Face or timm'
    )
  told = _told_heads(config, format)
  if None not in (heads, told) and heads != told:
    raise errors.UserError(
      f'{found.path}: its config.json says {told} attention heads, heads='
      f'{heads} was given'
    )
  architecture = adapt.encoder_size(
    found, table, told if heads is None else heads
  )
  if format == _HUGGING_FACE:
    left_out += _check_hugging_face(found.path, config)
  shapes = weights.shapes(architecture.encoder())
  encoder = adapt.parameters(found, table, shapes)
  told_predictor = config.get('predictor') if format == 'flax' else None
  predictor, predictor_size = _open_predictor(
    os.path.dirname(found.path), architecture, told_predictor
  )
  mark = config.get('ijepa_jax') or {}
  return Weights(
    source=found.path,
    format=format,
    architecture=architecture,
    target=encoder,
    context=encoder,
    predictor=predictor,
    predictor_size=predictor_size,
    ours=bool(mark.get('trained_here')),
    left_out=left_out,
    crop=_told_crop(config),
  )


def _unwrap(found: Tensors) -> tuple[Tensors, tuple[str, ...]]:
  """Without common prefixes and heads of other tasks, which are named."""
  left_out: list[str] = []
  while True:
    heads = sorted(n for n in found.shapes if n.startswith(_HEADS))
    left_out += [name.rpartition('.')[0] for name in heads]
    found = found.without(heads)
    for prefix in _WRAPPERS:
      if found.shapes and all(n.startswith(prefix) for n in found.shapes):
        found = found.section(prefix)
        break
    else:
      return found, tuple(dict.fromkeys(left_out))


def _told_heads(config: Mapping[str, Any], format: str) -> int | None:
  """Attention heads by a config.json of the format."""
  if format == 'flax':
    told = (config.get('architecture') or {}).get('heads')
  elif format == _HUGGING_FACE:
    told = config.get('num_attention_heads')
  else:
    told = (config.get('model_args') or {}).get('num_heads')
  return told if isinstance(told, int) and told > 0 else None


def _told_crop(config: Mapping[str, Any]) -> float:
  """Share of the shorter side that evaluation looks at."""
  crop = (config.get('ijepa_jax') or config.get('pretrained_cfg') or {}).get
  told = crop('crop', crop('crop_pct'))
  if isinstance(told, int | float) and 0 < told <= 1:
    return float(told)
  return Weights.crop


def _check_hugging_face(
  path: str, config: Mapping[str, Any]
) -> tuple[str, ...]:
  """Refuses a model that computes something else."""
  for name, expected in (('hidden_act', 'gelu'), ('qkv_bias', True)):
    if config.get(name, expected) != expected:
      raise errors.UserError(
        f'{path}: config.json has {name}={config[name]!r}, I-JEPA has '
        f'{expected!r}'
      )
  eps = config.get('layer_norm_eps', 1e-12)
  if config and eps != 1e-6:
    return (f"layer_norm_eps={eps} (the reference's 1e-6 is used)",)
  return ()


def _open_predictor(
  folder: str, architecture: Architecture, told: Mapping[str, int] | None
) -> tuple[Parameters | None, sizes.Size | None]:
  """The predictor that our `flax` format keeps in a file beside."""
  if not told:
    return None, None
  size = weights.size_from_dict(told)
  found = tensors.open_file(
    existing_path(os.path.join(folder, 'predictor.safetensors'), 'predictor')
  )
  shapes = weights.shapes(architecture.predictor(size))
  return adapt.parameters(found, names.FLAX_PREDICTOR, shapes), size


def _open_orbax(
  state: checkpoint.State, path: str, heads: int | None
) -> Weights:
  """A checkpoint of a run, or one that `convert` has written."""
  try:
    architecture, predictor_size = _describe(state.meta, path)
  except (KeyError, TypeError, AttributeError) as error:
    raise errors.UserError(
      f'{path} does not say what model it is of: {error}'
    ) from error
  if heads not in (None, architecture.size.heads):
    raise errors.UserError(
      f'{path} has {architecture.size.heads} attention heads, heads={heads} '
      'was given'
    )

  def section(
    prefix: str, shapes: Mapping[str, tuple[int, ...]]
  ) -> Parameters | None:
    dotted = {
      name.removeprefix(prefix).replace('/', '.'): shape
      for name, shape in state.shapes.items()
      if name.startswith(prefix)
    }
    if not dotted:
      return None

    def load(name: str) -> np.ndarray:
      return state.read(name.replace('.', '/'))

    found = Tensors(path, dotted, load, prefix=prefix.replace('/', '.'))
    table = (
      names.FLAX_PREDICTOR if 'predictor' in prefix else names.FLAX_ENCODER
    )
    return adapt.parameters(found, table, shapes)

  encoder = weights.shapes(architecture.encoder())
  target = section('target/', encoder)
  context = section('params/encoder/', encoder)
  if target is None and context is None:
    raise errors.UserError(f'{path} holds no encoder')
  predictor = moments = None
  if predictor_size is not None:
    shapes = weights.shapes(architecture.predictor(predictor_size))
    predictor = section('params/predictor/', shapes)
    trained = {'encoder': encoder, 'predictor': shapes}
    moments = _open_moments(state, trained, section)
  mark = state.meta.get('ijepa_jax') or {}
  progress = state.meta.get('progress')
  if progress is None:  # a run's
    progress = _progress(state.meta, int(state.read('step')))
  return Weights(
    source=path,
    format='ours (Orbax)',
    architecture=architecture,
    target=target or context,  # type: ignore[arg-type]
    context=context or target,  # type: ignore[arg-type]
    predictor=predictor,
    predictor_size=predictor_size if predictor else None,
    moments=moments,
    progress=progress,
    ours=bool(mark.get('trained_here')),
    crop=_told_crop({'ijepa_jax': mark}),
  )


def _describe(
  meta: Mapping[str, Any], path: str
) -> tuple[Architecture, sizes.Size | None]:
  """Architecture and predictor by a checkpoint's own description."""
  if 'architecture' in meta:
    told = meta.get('predictor')
    return (
      Architecture.from_dict(meta['architecture']),
      weights.size_from_dict(told) if told else None,
    )
  config = ml_collections.ConfigDict(meta['config'])
  if config.model.variant not in sizes.SIZES:
    raise errors.UserError(
      f'{path}: model.variant={config.model.variant!r} is not a size known here'
    )
  return (
    Architecture(
      sizes.SIZES[config.model.variant],
      config.model.patch_size,
      config.model.image_size,
    ),
    train_step.predictor_size(config),
  )


def _open_moments(
  state: checkpoint.State,
  trained: Mapping[str, Mapping[str, tuple[int, ...]]],
  section: Callable[[str, Mapping[str, tuple[int, ...]]], Parameters | None],
) -> Moments | None:
  """Adam's moments, wherever they are in the optimiser's chain."""
  prefixes = {
    match[2]: match[1]
    for name in state.shapes
    if (match := re.match(r'(opt_state/.*?)(mu|nu)/encoder/', name))
  }
  if not prefixes:
    return None

  def moment(name: str) -> dict[str, Parameters]:
    found = {}
    for part, shapes in trained.items():
      moving = {k: v for k, v in shapes.items() if k != 'pos_embed'}
      found[part] = section(f'{prefixes[name]}{name}/{part}/', moving)
    return {part: held for part, held in found.items() if held is not None}

  count = int(state.read(f'{prefixes["mu"]}count'))
  return Moments(count, mean=moment('mu'), square=moment('nu'))


def _progress(meta: Mapping[str, Any], step: int) -> dict[str, int]:
  """How far training was; the epoch where the run says how long one is."""
  length = meta.get('data', {}).get('epoch_length')
  if length is None:
    return {'step': step}
  per_epoch = optim.steps_per_epoch(length, meta['config']['batch_size'])
  return {'step': step, 'epoch': step // per_epoch}
