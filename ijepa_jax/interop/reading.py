"""Recognises a file or directory of weights by its content, and opens it."""

import json
import os
from collections.abc import Mapping

from ijepa_jax import checkpoint_files, errors
from ijepa_jax.data.sources import existing_path
from ijepa_jax.interop import (
  adapt,
  described,
  names,
  reference,
  runs,
  tensors,
  weights,
)
from ijepa_jax.interop.described import Described
from ijepa_jax.interop.tensors import Tensors
from ijepa_jax.interop.weights import Architecture, Weights

# Heads of other tasks; they are no part of an encoder.
_HEADS = ('pooler.', 'classifier.', 'head.')
# What a state dict may be wrapped in: DDP, training frameworks, and
# IJepaForImageClassification.
_WRAPPERS = ('module.', 'state_dict.', 'model.', 'ijepa.')

_FLAX, _HUGGING_FACE = 'flax', 'Hugging Face'
_REFERENCE = 'the reference, or timm'

# Formats of a single encoder, told apart by the name of this parameter.
_TELLS = 'trunk.blocks.norm1.scale'
_TABLES = (
  (_FLAX, names.FLAX_ENCODER),
  (_REFERENCE, names.ENCODER),
  (_HUGGING_FACE, names.HUGGINGFACE),
  (_HUGGING_FACE, names.HUGGINGFACE_5),
)

# What their config.json says of an encoder: the section, and its keys for
# those of `Architecture.to_dict`.
_OURS = ('width', 'depth', 'heads', 'hidden', 'patch_size', 'image_size')
_SAID: Mapping[str, tuple[str, Mapping[str, str]]] = {
  _FLAX: ('architecture', dict(zip(_OURS, _OURS))),
  _REFERENCE: (
    'model_args',
    {
      'width': 'embed_dim',
      'depth': 'depth',
      'heads': 'num_heads',
      'patch_size': 'patch_size',
      'image_size': 'img_size',
    },
  ),
  _HUGGING_FACE: (
    '',
    {
      'width': 'hidden_size',
      'depth': 'num_hidden_layers',
      'heads': 'num_attention_heads',
      'hidden': 'intermediate_size',
      'patch_size': 'patch_size',
      'image_size': 'image_size',
    },
  ),
}


def open_weights(
  path: str, heads: int | None = None, field: str = 'path'
) -> Weights:
  """Opens weights in any format.

  Args:
    path: a run's directory or a checkpoint of ours, a directory of `flax`,
      Hugging Face or timm weights, or a file of safetensors or PyTorch.
    heads: attention heads, where neither file nor width tell.
    field: what the user calls `path`, for messages: `'SRC'`, `'--checkpoint'`.

  Returns:
    The weights; numbers are read when they are asked for.

  Raises:
    UserError: nothing there, unknown, or damaged.
  """
  if '://' not in path:  # paths of a bucket are left as they are
    path = existing_path(path, field)
  try:
    folder = checkpoint_files.find(path)
  except OSError as error:
    raise errors.UserError(
      f'{field}: {path} cannot be read: {error.strerror}'
    ) from error
  if folder is not None:
    return runs.open_run(folder, heads)
  file = tensors.find(path)
  if file is None:
    raise errors.UserError(
      f'{field}: {path} holds no weights: expected a run directory, a '
      'checkpoint of ours, or a directory with model.safetensors or '
      'pytorch_model.bin'
    )
  # Beside a file of another name, config.json belongs to something else.
  named = os.path.isdir(path) or os.path.basename(path) in tensors.IN_DIRECTORY
  beside = os.path.join(os.path.dirname(file), 'config.json')
  config = described.read(beside) if named else Described(beside, {})
  found = tensors.open_file(file)
  if reference.is_reference(found):
    return reference.open_reference(found, heads)
  return _open_encoder(found, config, heads)


def _open_encoder(
  found: Tensors, config: Described, heads: int | None
) -> Weights:
  """A file with a single encoder."""
  found, left_out = _unwrap(found)
  format, table = _recognise(found)
  architecture = _architecture(found, config, format, table, heads)
  if format == _HUGGING_FACE:
    left_out += _check_hugging_face(config)
  shapes = weights.shapes(architecture.encoder())
  encoder = adapt.parameters(found, table, shapes)
  predictor = predictor_size = None
  if format == _FLAX and (said := config.section('predictor')).values:
    beside = os.path.join(os.path.dirname(found.path), 'predictor.safetensors')
    predictor, predictor_size = adapt.our_predictor(
      tensors.open_file(beside), said, architecture
    )
  mark = described.read_mark(config.section('ijepa_jax'))
  crop = config.section('pretrained_cfg').get('crop_pct', described.SHARE)
  if crop is not None:
    mark = {'crop': crop} | mark
  return Weights(
    source=found.path,
    format=format,
    architecture=architecture,
    target=encoder,
    context=encoder,
    predictor=predictor,
    predictor_size=predictor_size,
    left_out=left_out,
    **mark,
  )


def _recognise(found: Tensors) -> tuple[str, names.Table]:
  """The format of an encoder, by the names of its tensors."""
  for format, table in _TABLES:
    tells = next(entry for entry in table if entry.ours == _TELLS)
    if tells.names(0)[0] in found.shapes:
      return format, table
  some = ', '.join(list(found.shapes)[:3])
  why = f'its tensors are called {some}, ...' if some else 'it has no tensors'
  raise errors.UserError(
    f'{found.path} holds no I-JEPA encoder: {why}; expected the names of ours, '
    'the reference, Hugging Face or timm'
  )


def _architecture(
  found: Tensors,
  config: Described,
  format: str,
  table: names.Table,
  heads: int | None,
) -> Architecture:
  """By the tensors; the description says the heads, and must agree."""
  section, keys = _SAID[format]
  said = config.section(section) if section else config
  heads_key = said.name(keys['heads'])
  # Ours says all; others need not repeat what is their default.
  whole = format == _FLAX and bool(said.values)
  say = said.require if whole else said.get
  told = say(keys['heads'], described.SIZE)
  if None not in (heads, told) and heads != told:
    raise errors.UserError(f'{heads_key} is {told}, heads={heads} was given')
  architecture = adapt.encoder_size(
    found,
    table,
    heads if told is None else told,
    heads_from='' if told is None else heads_key,
  )
  sizes = architecture.to_dict()
  said.agree({keys[name]: sizes[name] for name in keys}, whole=whole)
  return architecture


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


def _check_hugging_face(config: Described) -> tuple[str, ...]:
  """Refuses a model that computes something else."""
  for name, expected in (('hidden_act', 'gelu'), ('qkv_bias', True)):
    if config.values.get(name, expected) != expected:
      raise config.wrong(name, f'{json.dumps(expected)} as I-JEPA has')
  eps = config.get('layer_norm_eps', described.NUMBER)
  if config.values and eps != 1e-6:
    # Without the key it is the default of `IJepaConfig`.
    return (f"layer_norm_eps={eps or 1e-12} (the reference's 1e-6 is used)",)
  return ()
