"""Compares encoders that were saved by Hugging Face's transformers."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import parity_files
import parity_golden
import parity_models
import parity_report
from flax import nnx
from parity_batch import FORWARD

import ijepa_jax
from ijepa_jax import encoder, errors
from ijepa_jax.interop import positions
from ijepa_jax.models import layers


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
  eps = parity_files.read_json(path).get('layer_norm_eps')
  if eps != layers.EPSILON:
    report.skip(source, 'all', f'layer_norm_eps is {eps}, ours is 1e-6')
    return
  stored = golden.path / 'hf' / f'{folder.name}_io.npz'
  model = folder.name.removesuffix('_legacy_names')
  legacy = golden.path / f'model_{model}.npz'
  if stored.exists():
    ours = ijepa_jax.load_encoder(str(folder))
    _compare_stored(report, source, ours, parity_files.read(stored))
  elif legacy.exists():
    ours = ijepa_jax.load_encoder(str(folder))
    arrays = golden.read(legacy)
    images = parity_golden.normalise(arrays['images_u8'])
    last, theirs = _features(ours, images, arrays), arrays['target_full']
    report.compare(source, 'target_full', last, theirs, FORWARD)
  else:
    report.skip(source, 'all', f'neither {stored.name} nor {legacy.name}')


def _compare_stored(
  report: parity_report.Report,
  source: str,
  ours: encoder.Encoder,
  arrays: parity_files.Arrays,
) -> None:
  """Compares all that transformers computed, also at other resolutions."""
  for i, seen in enumerate(hidden_states(ours, arrays['pixel_values'])):
    name = f'hidden_states_{i}'
    if name in arrays:
      report.compare(source, name, seen, arrays[name], FORWARD)
  # '' and '_56', '_32x48', ...: images of other sides.
  for sides in arrays.prefixes('pixel_values(.*)$'):
    last = _features(ours, arrays[f'pixel_values{sides}'], arrays)
    name = f'last_hidden_state{sides}'
    report.compare(source, name, last, arrays[name], FORWARD)
  grid = (ours.architecture.grid,) * 2
  for name in arrays.prefixes(r'(pos_embed_\d+x\d+_from_\d+x\d+)$'):
    rows, columns, *old = map(int, re.findall(r'\d+', name))
    if tuple(old) == grid:
      table = np.asarray(ours.params['pos_embed'])
      table = positions.interpolate(table, grid, (rows, columns))
      report.compare(source, name, table[None], arrays[name], FORWARD)
  if left := arrays.unasked():
    report.skip(source, ', '.join(left), 'not compared here')


def _features(
  ours: encoder.Encoder, images: np.ndarray, arrays: parity_files.Arrays
) -> jax.Array:
  """`(B, N, D)` of images `(B, 3, H, W)`."""
  try:
    return ours(jnp.asarray(parity_golden.channels_last(images)))
  except ValueError as error:  # sides that are no whole patches
    raise errors.UserError(f'{arrays.path}: {error}') from error


def hidden_states(
  ours: encoder.Encoder, images: np.ndarray
) -> list[np.ndarray]:
  """What enters the first block and leaves each one.

  Args:
    ours: the encoder.
    images: normalised, `(B, 3, S, S)` of its own side.
  """
  side = ours.architecture.image_size
  if images.shape[2:] != (side, side):
    raise errors.UserError(
      f'hf: images of {images.shape[2:]} pixels, expected {side}'
    )
  seen: list[np.ndarray] = []
  record = parity_models.recorder(seen)
  graph = nnx.graphdef(ours.architecture.encoder())

  @parity_models.jit
  def encode(params: dict, images: jax.Array) -> jax.Array:
    return nnx.merge(graph, params)(images, constrain=record)

  encode(ours.params, parity_golden.channels_last(images))
  jax.effects_barrier()
  return seen
