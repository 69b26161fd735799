"""Writes weights in every format that we offer."""

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from ijepa_jax import checkpoint, checkpoint_files, errors, train_step
from ijepa_jax.interop import names, reference, weights
from ijepa_jax.interop.weights import Architecture, Parameters, Weights, Which
from ijepa_jax.models import sizes

# Architectures that timm names (its `vision_transformer.py`).
_TIMM = {
  ('vit_huge', 14, 224): 'vit_huge_patch14_gap_224',
  ('vit_huge', 16, 448): 'vit_huge_patch16_gap_448',
  ('vit_giant', 16, 224): 'vit_giant_patch16_gap_224',
}
# What all others are built from, every argument given.
_TIMM_BASE = 'vit_base_patch16_224'

# Of the weights that the authors published (their README).
LICENCE = 'CC-BY-NC-4.0'
# Without the image: positions may have been interpolated.
_PUBLISHED = {(sizes.SIZES[variant], patch) for variant, patch, _ in _TIMM}


def write(
  held: Weights, dst: str, format: str, which: Which | None = None
) -> None:
  """Writes weights; DST appears when it is complete, or not at all.

  Args:
    held: what to write.
    dst: a directory to make; for `reference` a file.
    format: one of `FORMATS`.
    which: the encoder; None: the target encoder, and all that the source has
      where the format can hold it.

  Raises:
    UserError: DST exists, or the source is damaged.
    StorageError: DST cannot be written.
  """
  dst = os.path.abspath(os.path.expanduser(dst))
  if os.path.lexists(dst):
    raise errors.UserError(f'DST: {dst} exists; choose another name')
  try:
    os.makedirs(os.path.dirname(dst), exist_ok=True)
    beside = tempfile.mkdtemp(
      prefix=f'.{os.path.basename(dst)}.', dir=os.path.dirname(dst)
    )
    try:
      made = os.path.join(beside, os.path.basename(dst))
      FORMATS[format](held, made, which)
      os.rename(made, dst)
    finally:
      shutil.rmtree(beside)
  # What safetensors, PyTorch and Orbax raise on a full disk.
  except (OSError, SafetensorError, RuntimeError, ValueError) as error:
    raise errors.StorageError(
      f'DST: {dst} cannot be written: {str(error).splitlines()[0]}; mend that '
      'and run the same command again'
    ) from error


def lost(held: Weights, format: str, which: Which | None) -> list[str]:
  """What the source has and the format, or `which`, leaves out."""
  parts = list(held.left_out)
  keeps_all = format == 'reference' or (format == 'orbax' and which is None)
  if not keeps_all and not held.single:
    other = 'target' if which == 'context' else 'context'
    parts.append(f'the {other} encoder')
  if held.predictor is not None and format in ('huggingface', 'timm'):
    parts.append('the predictor')
  size = held.predictor_size
  if size and format == 'reference' and size.heads != _heads(held):
    parts.append(
      f"the predictor's {weights.counted(size.heads, 'head')}: the reference "
      f"gives it the encoder's {_heads(held)}, and will compute something else"
    )
  if held.moments is not None and not keeps_all:
    parts.append("the optimiser's moments")
  return parts


def may_be_published(held: Weights) -> bool:
  """Whether weights may be the authors', or derive from them.

  Numbers do not tell who trained them, but the authors' have known shapes, and
  whatever derives from them here keeps these and is never marked as ours.
  """
  architecture = held.architecture
  shape = architecture.size, architecture.patch_size
  return not held.ours and shape in _PUBLISHED


def _licence(held: Weights) -> str | None:
  """As Hugging Face spells it; of what was trained here, its owner decides."""
  if held.ours:
    return None
  return LICENCE.lower() if may_be_published(held) else 'unknown'


def _heads(held: Weights) -> int:
  return held.architecture.size.heads


def _flax(held: Weights, folder: str, which: Which | None) -> None:
  os.mkdir(folder)
  _save(folder, 'model.safetensors', held.encoder(which or 'target'))
  config = _description(held) | {'format': 'ijepa_jax'}
  if held.predictor is not None:
    _save(folder, 'predictor.safetensors', held.predictor)
  _write_json(folder, 'config.json', config)


def _orbax(held: Weights, folder: str, which: Which | None) -> None:
  host = jax.devices('cpu')[0]
  state: dict[str, Any] = {}
  if which is not None or held.single:
    # One copy on disk; whoever reads it uses it as both.
    state['target'] = held.encoder(which or 'target').tree(host)
  else:
    state['target'] = held.target.tree(host)
    state['params'] = {'encoder': held.context.tree(host)}
  if held.predictor is not None:
    state.setdefault('params', {})['predictor'] = held.predictor.tree(host)
  if held.moments is not None and which is None:
    moments = held.moments
    state['opt_state'] = {
      'count': jax.device_put(np.int32(moments.count), host),
      'mu': {part: p.tree(host) for part, p in moments.mean.items()},
      'nu': {part: p.tree(host) for part, p in moments.square.items()},
    }
  checkpoint_files.write(folder, state, _description(held))


def _huggingface(held: Weights, folder: str, which: Which | None) -> None:
  os.mkdir(folder)
  encoder = held.encoder(which or 'target')
  _save(
    folder,
    'model.safetensors',
    _scatter(encoder, names.HUGGINGFACE),
    {'format': 'pt'},
  )
  size = held.architecture.size
  _write_json(
    folder,
    'config.json',
    {
      'architectures': ['IJepaModel'],
      'model_type': 'ijepa',
      'hidden_size': size.width,
      'num_hidden_layers': size.depth,
      'num_attention_heads': size.heads,
      'intermediate_size': size.hidden,
      'patch_size': held.architecture.patch_size,
      'image_size': held.architecture.image_size,
      'num_channels': 3,
      'hidden_act': 'gelu',
      'layer_norm_eps': 1e-6,
      'qkv_bias': True,
      'hidden_dropout_prob': 0.0,
      'attention_probs_dropout_prob': 0.0,
      'initializer_range': 0.02,
      'torch_dtype': 'float32',
      'ijepa_jax': held.mark(),
    },
  )
  side = held.architecture.image_size
  _write_json(
    folder,
    'preprocessor_config.json',
    {
      'image_processor_type': 'ViTImageProcessor',
      'do_resize': True,
      'size': {'shortest_edge': round(side / held.crop)},
      'resample': 2,  # PIL's BILINEAR
      'do_center_crop': True,
      'crop_size': {'height': side, 'width': side},
      'do_rescale': True,
      'rescale_factor': 1 / 255,
      'do_normalize': True,
      'image_mean': train_step.MEAN,
      'image_std': train_step.STD,
    },
  )
  with open(os.path.join(folder, 'README.md'), 'w', encoding='utf-8') as file:
    file.write(_model_card(held, which or 'target'))


def _timm(held: Weights, folder: str, which: Which | None) -> None:
  os.mkdir(folder)
  encoder = held.encoder(which or 'target')
  _save(
    folder,
    'model.safetensors',
    _scatter(encoder, names.ENCODER),
    {'format': 'pt'},
  )
  side = held.architecture.image_size
  name, args = timm_model(held.architecture)
  _write_json(
    folder,
    'config.json',
    {
      'architecture': name,
      'num_classes': 0,
      'num_features': held.architecture.size.width,
      'global_pool': 'avg',
      'model_args': args,
      'pretrained_cfg': {
        'tag': 'ijepa',
        'input_size': [3, side, side],
        'fixed_input_size': True,
        'interpolation': 'bilinear',
        'crop_pct': held.crop,
        'crop_mode': 'center',
        'mean': train_step.MEAN,
        'std': train_step.STD,
        'num_classes': 0,
        'pool_size': None,
        'first_conv': 'patch_embed.proj',
        'classifier': 'head',
        'license': _licence(held),
      },
      'ijepa_jax': held.mark(),
    },
  )


def timm_model(architecture: Architecture) -> tuple[str, dict[str, Any]]:
  """Name and arguments for `timm.create_model`."""
  size = architecture.size
  for (variant, *sides), name in _TIMM.items():
    if architecture == Architecture(sizes.SIZES[variant], *sides):
      return name, {}
  ratio = size.hidden / size.width
  while int(size.width * ratio) < size.hidden:  # timm truncates a float product
    ratio = float(np.nextafter(ratio, np.inf))
  return _TIMM_BASE, {
    'img_size': architecture.image_size,
    'patch_size': architecture.patch_size,
    'embed_dim': size.width,
    'depth': size.depth,
    'num_heads': size.heads,
    'mlp_ratio': ratio,
    'class_token': False,
    'global_pool': 'avg',
    'fc_norm': False,
    'num_classes': 0,
  }


def _reference(held: Weights, path: str, which: Which | None) -> None:
  reference.write(path, held)


FORMATS: dict[str, Callable[[Weights, str, Which | None], None]] = {
  'orbax': _orbax,
  'flax': _flax,
  'huggingface': _huggingface,
  'timm': _timm,
  'reference': _reference,
}


def _scatter(
  held: Parameters, table: names.Table
) -> Iterator[tuple[str, np.ndarray]]:
  """Their tensors, one of our parameters after the other."""
  for entry in table:
    yield from names.scatter(entry, held[entry.ours])


def _description(held: Weights) -> dict[str, Any]:
  """What our own formats say of the weights."""
  size = held.predictor_size
  return {
    'architecture': held.architecture.to_dict(),
    'predictor': weights.size_to_dict(size) if size else None,
    'preprocessing': {'mean': train_step.MEAN, 'std': train_step.STD},
    'versions': checkpoint.versions(),
    'ijepa_jax': held.mark(),
  }


def _save(
  folder: str,
  name: str,
  tensors: Parameters | Iterator[tuple[str, np.ndarray]],
  metadata: dict[str, str] | None = None,
) -> None:
  path = os.path.join(folder, name)
  safetensors.save_file(dict(tensors), path, metadata)
  # That makes a file for its owner alone; give it the mode of all others.
  umask = os.umask(0)
  os.umask(umask)
  os.chmod(path, 0o666 & ~umask)


def _write_json(folder: str, name: str, content: dict[str, Any]) -> None:
  with open(os.path.join(folder, name), 'w', encoding='utf-8') as file:
    json.dump(content, file, indent=2)
    file.write('\n')


def resized(
  held: Weights,
  image_size: int,
  resize: Callable[[np.ndarray, int, int], np.ndarray],
) -> Weights:
  """The same weights with position tables for another side of the image.

  Args:
    held: the weights; moments do not depend on positions.
    image_size: pixels.
    resize: a table, its old and its new number of patches per side, to the
      new table.
  """
  architecture = held.architecture.at(image_size)
  grids = held.architecture.grid, architecture.grid

  def with_table(parameters: Parameters) -> Parameters:
    table = resize(parameters['pos_embed'], *grids)
    return parameters.replace('pos_embed', table)

  target = with_table(held.target)
  return dataclasses.replace(
    held,
    architecture=architecture,
    target=target,
    context=target if held.single else with_table(held.context),
    predictor=with_table(held.predictor) if held.predictor else None,
  )


def _model_card(held: Weights, which: Which) -> str:
  size, side = held.architecture.size, held.architecture.image_size
  patch = held.architecture.patch_size
  licence = _licence(held)
  heading = '' if licence is None else f'license: {licence}\n'
  heads = weights.counted(size.heads, 'head')
  origin = (
    f'Converted by ijepa_jax from other weights ({held.format}); their licence '
    'applies.'
  )
  if held.ours:
    origin = 'Trained with ijepa_jax.'
  elif may_be_published(held):
    origin += (
      f' The weights that the authors published are under {LICENCE}: these '
      'have their shape, and may be theirs or derive from them.'
    )
  return f"""---
library_name: transformers
pipeline_tag: image-feature-extraction
tags: [ijepa, self-supervised]
{heading}---

# I-JEPA encoder, {size.width} wide, {weights.counted(size.depth, 'block')}

The {which} encoder of an I-JEPA (Assran et al., CVPR 2023): patches of
{patch} pixels, images of {side} pixels, {heads}, no class token.
{origin}

```python
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained(FOLDER)
model = AutoModel.from_pretrained(FOLDER)
tokens = model(**processor(image, return_tensors='pt')).last_hidden_state
features = tokens.mean(1)
```
"""
