"""Where each of our parameters is in another format: one table per format.

Others name tensors as PyTorch does and store every block on its own; ours are
nested dicts whose blocks are stacked along axis 0. A table lists every tensor
of a format exactly once, so that what it does not list is an error.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Layout:
  """How one tensor is laid out in PyTorch, as a pair of inverse functions."""

  to_ours: Callable[[Array], Array]
  to_theirs: Callable[[Array], Array]


def _embed_kernel(kernel: Array) -> Array:
  """`(P * P * 3, D)` to `(D, 3, P, P)`."""
  side = math.isqrt(kernel.shape[0] // 3)
  return kernel.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)


VECTOR = Layout(lambda x: x, lambda x: x)
# (out, in) and (in, out).
LINEAR = Layout(lambda x: x.T, lambda x: x.T)
# (D, 3, P, P) and (P * P * 3, D): patches are flattened row, column, channel.
PATCHES = Layout(
  lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]), _embed_kernel
)
# (1, N, D) and (N, D).
POSITIONS = Layout(lambda x: x[0], lambda x: x[None])
# (1, 1, W) and (W,).
TOKEN = Layout(lambda x: x[0, 0], lambda x: x[None, None])


@dataclasses.dataclass(frozen=True)
class Entry:
  """One of our parameters.

  Attributes:
    ours: its dotted path, such as `'trunk.blocks.qkv.kernel'`.
    theirs: names of the tensors that it is made of, joined along their first
      axis; `{}` stands for the number of the block.
    layout: between their tensor and ours.
  """

  ours: str
  theirs: tuple[str, ...]
  layout: Layout

  @property
  def stacked(self) -> bool:
    """Whether ours has a leading axis of blocks."""
    return '{}' in self.theirs[0]

  def names(self, block: int) -> tuple[str, ...]:
    """Their names for one block."""
    return tuple(name.format(block) for name in self.theirs)


Table = tuple[Entry, ...]


def _layer(ours: str, *theirs: str) -> Iterator[Entry]:
  """Kernel and bias of a linear layer."""
  weights = tuple(f'{name}.weight' for name in theirs)
  yield Entry(f'{ours}.kernel', weights, LINEAR)
  biases = tuple(f'{name}.bias' for name in theirs)
  yield Entry(f'{ours}.bias', biases, VECTOR)


def _norm(ours: str, theirs: str) -> Iterator[Entry]:
  """Scale and bias of a layer norm."""
  yield Entry(f'{ours}.scale', (f'{theirs}.weight',), VECTOR)
  yield Entry(f'{ours}.bias', (f'{theirs}.bias',), VECTOR)


def _patch_embed(theirs: str) -> Iterator[Entry]:
  yield Entry('patch_embed.kernel', (f'{theirs}.weight',), PATCHES)
  yield Entry('patch_embed.bias', (f'{theirs}.bias',), VECTOR)


def _blocks(prefix: str) -> Iterator[Entry]:
  """Blocks as the reference and timm name them."""
  ours = 'trunk.blocks'
  yield from _norm(f'{ours}.norm1', f'{prefix}.{{}}.norm1')
  yield from _layer(f'{ours}.qkv', f'{prefix}.{{}}.attn.qkv')
  yield from _layer(f'{ours}.proj', f'{prefix}.{{}}.attn.proj')
  yield from _norm(f'{ours}.norm2', f'{prefix}.{{}}.norm2')
  yield from _layer(f'{ours}.fc1', f'{prefix}.{{}}.mlp.fc1')
  yield from _layer(f'{ours}.fc2', f'{prefix}.{{}}.mlp.fc2')


# The reference (`src/models/vision_transformer.py`); timm's names are the same.
ENCODER: Table = (
  Entry('pos_embed', ('pos_embed',), POSITIONS),
  *_patch_embed('patch_embed.proj'),
  *_blocks('blocks'),
  *_norm('trunk.norm', 'norm'),
)

PREDICTOR: Table = (
  Entry('mask_token', ('mask_token',), TOKEN),
  Entry('pos_embed', ('predictor_pos_embed',), POSITIONS),
  *_layer('embed', 'predictor_embed'),
  *_blocks('predictor_blocks'),
  *_norm('trunk.norm', 'predictor_norm'),
  *_layer('proj', 'predictor_proj'),
)


def _huggingface(block: Mapping[str, str]) -> Table:
  """`IJepaModel`; `block` has the names that changed with transformers 5."""
  ours, prefix = 'trunk.blocks', f'{block["blocks"]}.{{}}'
  qkv = [f'{prefix}.{block[name]}' for name in ('query', 'key', 'value')]
  return (
    Entry('pos_embed', ('embeddings.position_embeddings',), POSITIONS),
    *_patch_embed('embeddings.patch_embeddings.projection'),
    *_norm(f'{ours}.norm1', f'{prefix}.layernorm_before'),
    *_layer(f'{ours}.qkv', *qkv),
    *_layer(f'{ours}.proj', f'{prefix}.{block["proj"]}'),
    *_norm(f'{ours}.norm2', f'{prefix}.layernorm_after'),
    *_layer(f'{ours}.fc1', f'{prefix}.{block["fc1"]}'),
    *_layer(f'{ours}.fc2', f'{prefix}.{block["fc2"]}'),
    *_norm('trunk.norm', 'layernorm'),
  )


# In the files on the hub, read and written by transformers 4 and 5.
HUGGINGFACE = _huggingface(
  {
    'blocks': 'encoder.layer',
    'query': 'attention.attention.query',
    'key': 'attention.attention.key',
    'value': 'attention.attention.value',
    'proj': 'attention.output.dense',
    'fc1': 'intermediate.dense',
    'fc2': 'output.dense',
  }
)
# Of a model in memory, in transformers 5.
HUGGINGFACE_5 = _huggingface(
  {
    'blocks': 'layers',
    'query': 'attention.q_proj',
    'key': 'attention.k_proj',
    'value': 'attention.v_proj',
    'proj': 'attention.o_proj',
    'fc1': 'mlp.fc1',
    'fc2': 'mlp.fc2',
  }
)


def _ours(table: Table) -> Table:
  return tuple(Entry(entry.ours, (entry.ours,), VECTOR) for entry in table)


# Our own names, blocks stacked.
FLAX_ENCODER = _ours(ENCODER)
FLAX_PREDICTOR = _ours(PREDICTOR)


def gather(entry: Entry, depth: int, read: Callable[[str], Array]) -> Array:
  """Our parameter, float32, made of their tensors.

  Args:
    entry: which one.
    depth: blocks of the model.
    read: a tensor of theirs by its name.
  """

  def one(block: int) -> Array:
    parts = [read(name) for name in entry.names(block)]
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return entry.layout.to_ours(whole)

  if not entry.stacked:
    return np.ascontiguousarray(one(0), np.float32)
  first = one(0)
  stack = np.empty((depth, *first.shape), np.float32)
  stack[0] = first
  for block in range(1, depth):
    stack[block] = one(block)
  return stack


def scatter(entry: Entry, ours: Array) -> Iterator[tuple[str, Array]]:
  """Their tensors by name, contiguous, made of our parameter."""
  for block, layer in enumerate(ours if entry.stacked else ours[None]):
    names = entry.names(block)
    whole = entry.layout.to_theirs(layer)
    for name, part in zip(names, np.split(whole, len(names)), strict=True):
      yield name, np.ascontiguousarray(part)


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Dotted paths to a nested dict."""
  tree: dict[str, Any] = {}
  for path, leaf in flat.items():
    *outer, last = path.split('.')
    node = tree
    for name in outer:
      node = node.setdefault(name, {})
    node[last] = leaf
  return tree


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """The inverse of `nest`."""
  flat: dict[str, Any] = {}
  for name, node in tree.items():
    if isinstance(node, Mapping):
      flat |= flatten(node, f'{prefix}{name}.')
    else:
      flat[f'{prefix}{name}'] = node
  return flat


def in_order(table: Table, depth: int) -> Iterator[str]:
  """Their names in the order of their modules: block by block."""
  blocks = [entry for entry in table if entry.stacked]
  for entry in table:
    if not entry.stacked:
      yield from entry.theirs
    elif entry is blocks[0]:
      for block in range(depth):
        for each in blocks:
          yield from each.names(block)


def tree(table: Table, tensors: Mapping[str, Array]) -> dict[str, Any]:
  """Our nested parameters, made of all of their tensors.

  Args:
    table: of their format.
    tensors: exactly those that the table lists.

  Raises:
    KeyError: a tensor too few or too many.
  """
  depth = count_blocks(table, tensors)
  expected = {
    name
    for entry in table
    for block in range(depth if entry.stacked else 1)
    for name in entry.names(block)
  }
  if unknown := tensors.keys() - expected:
    raise KeyError(f'not in the table: {sorted(unknown)}')
  read = tensors.__getitem__
  return nest({entry.ours: gather(entry, depth, read) for entry in table})


def count_blocks(table: Table, names: Iterable[str]) -> int:
  """How many blocks `names` speak of: the largest number and 1."""
  stacked = (name for entry in table if entry.stacked for name in entry.theirs)
  prefix = next(stacked, '{}').partition('{}')[0]
  # No more digits: a name alone must not make tables of millions of blocks.
  pattern = re.compile(rf'{re.escape(prefix)}([0-9]{{1,4}})\.')
  found = (pattern.match(name) for name in names)
  return 1 + max((int(match[1]) for match in found if match), default=-1)
