"""Compares encoders that were saved by Hugging Face's transformers."""

import pathlib
from typing import Any

import jax
import numpy as np
import parity_files
import parity_golden
import parity_models
import parity_report
from flax import nnx
from parity_batch import FORWARD

from ijepa_jax import errors
from ijepa_jax.interop import names, tensors
from ijepa_jax.models import layers, vit


def compare(
  report: parity_report.Report,
  path: pathlib.Path,
  golden: parity_files.Folder,
) -> None:
  """Compares the model of `hf/NAME/config.json`.

  Expected outputs are in `hf/NAME_io.npz`, or in `model_NAME.npz` for
  `hf/NAME_legacy_names`.

  Args:
    report: takes the rows.
    path: the model's config.
    golden: the folder of golden numbers.
  """
  folder = path.parent
  source = f'hf/{folder.name}'
  config = parity_files.read_json(path)
  eps = config.get('layer_norm_eps')
  if eps != layers.EPSILON:
    report.skip(source, 'all', f'layer_norm_eps is {eps}, ours is 1e-6')
    return
  stored = golden.path / 'hf' / f'{folder.name}_io.npz'
  model = folder.name.removesuffix('_legacy_names')
  legacy = golden.path / f'model_{model}.npz'
  if stored.exists():
    arrays = parity_files.read(stored)
    images, final = arrays['pixel_values'], 'last_hidden_state'
  elif legacy.exists():
    arrays = golden.read(legacy)
    images = parity_golden.normalise(arrays['images_u8'])
    final = 'target_full'
  else:
    report.skip(source, 'all', f'neither {stored.name} nor {legacy.name}')
    return
  encoder = _read(folder / 'model.safetensors')
  heads = config.get('num_attention_heads')
  if not heads:
    raise errors.UserError(f'{path}: num_attention_heads is missing')
  *seen, last = run(encoder, heads, parity_golden.channels_last(images))
  for i, ours in enumerate(seen):
    if f'hidden_states_{i}' in arrays:
      theirs = arrays[f'hidden_states_{i}']
      difference = parity_report.difference(ours, theirs)
      report.add(source, f'hidden_states_{i}', difference, FORWARD)
  difference = parity_report.difference(last, arrays[final])
  report.add(source, final, difference, FORWARD)
  if stored.exists() and (left := arrays.unasked()):
    report.skip(source, ', '.join(left), 'not compared here')


def run(encoder: dict, heads: int, images: np.ndarray) -> list[np.ndarray]:
  """Outputs of our encoder.

  Args:
    encoder: our parameters.
    heads: of its attention.
    images: normalised, `(B, S, S, 3)`.

  Returns:
    What enters the first block and leaves each one, then after the last norm.
  """
  size = parity_golden.trunk_size(encoder, heads)
  patch, side = parity_golden.image_sides(encoder)
  if images.shape[1:3] != (side, side):
    raise errors.UserError(
      f'hf: images of {images.shape[1:3]} pixels, expected {side}'
    )
  seen: list[np.ndarray] = []
  record = parity_models.recorder(seen)

  def make() -> vit.Encoder:
    return vit.Encoder(
      size, patch_size=patch, image_size=side, rngs=nnx.Rngs(0)
    )

  graph = nnx.graphdef(nnx.eval_shape(make))

  @parity_models.jit
  def encode(encoder: dict, images: Any) -> jax.Array:
    return nnx.merge(graph, encoder)(images, constrain=record)

  last = np.asarray(encode(encoder, images))
  jax.effects_barrier()
  return [*seen, last]


def _read(path: pathlib.Path) -> dict:
  """Our parameters of a file in which the names are of either version."""
  if not path.exists():
    raise errors.UserError(f'{path} is missing')
  file = tensors.open_file(str(path))
  held = {
    name.removeprefix('ijepa.'): file.read(name)
    for name in file.shapes
    if not name.removeprefix('ijepa.').startswith('pooler.')
  }
  legacy = any(name.startswith('encoder.layer.') for name in held)
  table = names.HUGGINGFACE if legacy else names.HUGGINGFACE_5
  try:
    return names.tree(table, held)
  except KeyError as error:
    raise errors.UserError(f'{path}: no IJepaModel: {error}') from error
