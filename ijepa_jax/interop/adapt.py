"""Tensors under other names as our parameters, checked one by one."""

import difflib
import fractions
from collections.abc import Mapping

import numpy as np

from ijepa_jax import errors
from ijepa_jax.interop import described, names, weights
from ijepa_jax.interop.described import Described
from ijepa_jax.interop.tensors import Tensors
from ijepa_jax.interop.weights import Architecture, Parameters
from ijepa_jax.models import sizes

# Heads cannot be told from shapes; in these sizes everybody agrees on them.
_HEADS = {size.width: size.heads for size in sizes.SIZES.values()}


def encoder_size(
  tensors: Tensors,
  table: names.Table,
  heads: int | None,
  heads_from: str = '',
) -> Architecture:
  """The architecture that an encoder's shapes tell.

  Args:
    tensors: of the encoder alone.
    table: of their format.
    heads: attention heads if known from elsewhere.
    heads_from: the file and key that says so; none: the user.

  Raises:
    UserError: a tensor that tells is missing or of no possible shape, or the
      heads are unknown.
  """
  positions = _shape(tensors, table, 'pos_embed')
  patch = _shape(tensors, table, 'patch_embed.kernel')
  side = round((patch[0] / 3) ** 0.5)
  grid = round(positions[0] ** 0.5)
  if not grid or grid**2 != positions[0] or 3 * side**2 != patch[0]:
    raise errors.UserError(
      f'{tensors.path}: {weights.counted(positions[0], "position")} and '
      f'patches of {weights.counted(patch[0], "number")} are not those of '
      'square images in square RGB patches'
    )
  return Architecture(
    trunk_size(tensors, table, heads, heads_from),
    patch_size=side,
    image_size=grid * side,
  )


def trunk_size(
  tensors: Tensors,
  table: names.Table,
  heads: int | None,
  heads_from: str = '',
) -> sizes.Size:
  """Width, depth, heads and MLP ratio of an encoder or a predictor."""
  width = _shape(tensors, table, 'pos_embed')[1]
  *depth, _, hidden = _shape(tensors, table, 'trunk.blocks.fc1.kernel')
  heads = _HEADS.get(width) if heads is None else heads
  if width % 4:
    raise errors.UserError(
      f'{tensors.path}: a width of {width} is not a multiple of 4'
    )
  if heads is None:
    raise errors.UserError(
      f'{tensors.path}: a width of {width} does not tell the number of '
      'attention heads; give it: heads (--heads=N)'
    )
  if heads < 1 or width % heads:
    raise errors.UserError(
      f'{tensors.path}: heads={heads} does not divide the width {width}'
      + (f'; {heads_from} says so' if heads_from else '')
    )
  blocks = depth[0] if depth else names.count_blocks(table, tensors.shapes)
  return sizes.Size(width, blocks, heads, fractions.Fraction(hidden, width))


def parameters(
  tensors: Tensors,
  table: names.Table,
  shapes: Mapping[str, tuple[int, ...]],
) -> Parameters:
  """Reads `tensors` as our parameters of these shapes.

  Raises:
    UserError: a tensor is missing, unknown, or of another shape; its name is
      theirs.
  """
  table = tuple(entry for entry in table if entry.ours in shapes)
  depth = shapes['trunk.blocks.fc1.kernel'][0]
  expected = {
    name: shape
    for entry in table
    for name, shape in _their_shapes(entry, shapes[entry.ours], depth).items()
  }
  where = f'{tensors.path}: {tensors.prefix}'
  missing = [name for name in expected if name not in tensors.shapes]
  unknown = [name for name in tensors.shapes if name not in expected]
  if missing:
    near = difflib.get_close_matches(missing[0], unknown, n=1)
    raise errors.UserError(
      f'{where}{missing[0]} is missing'
      + _others(missing)
      + (f'; {near[0]} is there instead' if near else '')
    )
  if unknown:
    raise errors.UserError(
      f'{where}{unknown[0]} is not part of an I-JEPA model' + _others(unknown)
    )
  for name, shape in expected.items():
    if tensors.shapes[name] != shape:
      raise errors.UserError(
        f'{where}{name} has shape {tensors.shapes[name]}, expected {shape}'
      )
  entries = {entry.ours: entry for entry in table}

  def read(path: str) -> np.ndarray:
    return names.gather(entries[path], depth, tensors.read)

  return Parameters(shapes, read)


def our_predictor(
  tensors: Tensors,
  said: Described,
  architecture: Architecture,
  encoder_heads: int | None = None,
) -> tuple[Parameters, sizes.Size]:
  """A predictor in our own format.

  Args:
    tensors: of the predictor alone.
    said: its size; in a run's config, the section `predictor`.
    architecture: of its encoder.
    encoder_heads: of a run's encoder, which the predictor has too if its config
      says nothing else.

  Raises:
    UserError: as for `parameters`, or the description is of another.
  """
  if encoder_heads and said.values.get('heads') is None:
    heads = encoder_heads
  else:
    heads = said.require('heads', described.SIZE)
  size = trunk_size(tensors, names.FLAX_PREDICTOR, heads, said.name('heads'))
  told = {'width': size.width, 'depth': size.depth}
  if not encoder_heads:  # a config does not name the MLP's
    told['hidden'] = size.hidden
  said.agree(told, whole=True)
  shapes = weights.shapes(architecture.predictor(size))
  return parameters(tensors, names.FLAX_PREDICTOR, shapes), size


def _others(names: list[str]) -> str:
  return f', and {len(names) - 1} more' if len(names) > 1 else ''


def _shape(tensors: Tensors, table: names.Table, path: str) -> tuple[int, ...]:
  """Shape of our matrix, as the tensors of block 0 tell it."""
  entry = next(entry for entry in table if entry.ours == path)
  # Blocks are stacked in our own format, and counted in the others.
  rank = 3 if '.blocks.' in path and not entry.stacked else 2
  name = entry.names(0)[0]
  if name not in tensors.shapes:
    raise errors.UserError(f'{tensors.path}: {tensors.prefix}{name} is missing')
  shape = tensors.shapes[name]
  try:
    ours = entry.layout.to_ours(_stand_in(shape)).shape
  except (ValueError, IndexError, TypeError):
    ours = ()
  if len(ours) != rank or 0 in ours:
    raise errors.UserError(
      f'{tensors.path}: {tensors.prefix}{name} has shape {shape}, which is not '
      f'that of {path}'
    )
  return ours


def _their_shapes(
  entry: names.Entry, ours: tuple[int, ...], depth: int
) -> dict[str, tuple[int, ...]]:
  """Shapes that their tensors must have, in all blocks."""
  layer = ours[1:] if entry.stacked else ours
  whole = entry.layout.to_theirs(_stand_in(layer)).shape
  part = (whole[0] // len(entry.theirs), *whole[1:])
  blocks = range(depth if entry.stacked else 1)
  return {name: part for block in blocks for name in entry.names(block)}


def _stand_in(shape: tuple[int, ...]) -> np.ndarray:
  """An array of this shape that takes no memory."""
  return np.broadcast_to(np.float32(0), shape)
