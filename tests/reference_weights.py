"""Weights of the reference as our parameters: one explicit table.

The reference names its tensors as PyTorch does and stores every block on its
own; ours are nested dicts with the blocks stacked along axis 0.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

Convert = Callable[[np.ndarray], np.ndarray]


def _same(x: np.ndarray) -> np.ndarray:
  return x


def _linear(x: np.ndarray) -> np.ndarray:
  return x.T  # (out, in) to (in, out)


def _conv(x: np.ndarray) -> np.ndarray:
  # (D, 3, P, P) to (P * P * 3, D): patches are flattened row, column, channel.
  return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


def _table(x: np.ndarray) -> np.ndarray:
  return x[0]  # (1, N, D) to (N, D)


def _token(x: np.ndarray) -> np.ndarray:
  return x[0, 0]  # (1, 1, W) to (W,)


_BLOCK = {
  'norm1.weight': ('norm1.scale', _same),
  'norm1.bias': ('norm1.bias', _same),
  'attn.qkv.weight': ('qkv.kernel', _linear),
  'attn.qkv.bias': ('qkv.bias', _same),
  'attn.proj.weight': ('proj.kernel', _linear),
  'attn.proj.bias': ('proj.bias', _same),
  'norm2.weight': ('norm2.scale', _same),
  'norm2.bias': ('norm2.bias', _same),
  'mlp.fc1.weight': ('fc1.kernel', _linear),
  'mlp.fc1.bias': ('fc1.bias', _same),
  'mlp.fc2.weight': ('fc2.kernel', _linear),
  'mlp.fc2.bias': ('fc2.bias', _same),
}

_ENCODER = {
  'pos_embed': ('pos_embed', _table),
  'patch_embed.proj.weight': ('patch_embed.kernel', _conv),
  'patch_embed.proj.bias': ('patch_embed.bias', _same),
  'norm.weight': ('trunk.norm.scale', _same),
  'norm.bias': ('trunk.norm.bias', _same),
}

_PREDICTOR = {
  'mask_token': ('mask_token', _token),
  'predictor_pos_embed': ('pos_embed', _table),
  'predictor_embed.weight': ('embed.kernel', _linear),
  'predictor_embed.bias': ('embed.bias', _same),
  'predictor_norm.weight': ('trunk.norm.scale', _same),
  'predictor_norm.bias': ('trunk.norm.bias', _same),
  'predictor_proj.weight': ('proj.kernel', _linear),
  'predictor_proj.bias': ('proj.bias', _same),
}


def encoder(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Parameters of an encoder from the reference's tensors by name."""
  return _tree(tensors, _ENCODER, 'blocks')


def predictor(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Parameters of a predictor from the reference's tensors by name."""
  return _tree(tensors, _PREDICTOR, 'predictor_blocks')


def _tree(
  tensors: Mapping[str, np.ndarray],
  table: Mapping[str, tuple[str, Convert]],
  blocks: str,
) -> dict[str, Any]:
  """Nested parameters; a tensor too few or too many is a KeyError."""
  left = dict(tensors)
  depth = 1 + max(
    int(name.split('.')[1]) for name in left if name.startswith(blocks)
  )
  tree: dict[str, Any] = {}
  for theirs, (ours, convert) in table.items():
    _assign(tree, ours, convert(left.pop(theirs)))
  for theirs, (ours, convert) in _BLOCK.items():
    layers = [convert(left.pop(f'{blocks}.{i}.{theirs}')) for i in range(depth)]
    _assign(tree, f'trunk.blocks.{ours}', np.stack(layers))
  if left:
    raise KeyError(f'not in the table: {sorted(left)}')
  return tree


def _assign(tree: dict[str, Any], path: str, value: np.ndarray) -> None:
  *outer, last = path.split('.')
  for name in outer:
    tree = tree.setdefault(name, {})
  tree[last] = value


def tensors(tree: dict[str, Any]) -> dict[str, np.ndarray]:
  """Every tensor of the reference by our name, blocks taken apart.

  The query, key and value parts of `qkv.bias` are told apart too: the gradient
  of the key part is zero in exact arithmetic and needs its own comparison.
  """
  flat = {}
  for path, leaf in jax.tree.leaves_with_path(tree):
    name = jax.tree_util.keystr(path, simple=True, separator='.')
    layers = {name: leaf}
    if '.blocks.' in name:
      layers = {f'{name}[{i}]': layer for i, layer in enumerate(leaf)}
    for name, layer in layers.items():
      if 'qkv.bias' in name:
        parts = np.split(np.asarray(layer), 3)
        named = zip(('query', 'key', 'value'), parts, strict=True)
        flat.update({f'{name}.{part}': x for part, x in named})
      else:
        flat[name] = np.asarray(layer)
  return flat
