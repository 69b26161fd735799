"""Files of named tensors: safetensors and PyTorch, whole or in shards.

Only headers are read when a file is opened; a tensor is read when it is asked
for. No pickle is executed: PyTorch files go through its `weights_only` reader,
which refuses everything but tensors and plain containers.
"""

import dataclasses
import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax  # noqa: F401  (makes bfloat16 a type that numpy knows)
import numpy as np
import safetensors

from ijepa_jax import errors

# Bytes read through a memory map before it is made anew: pages that were
# touched count as memory of the process until then.
_MAPPED = 256 * 2**20

# What the readers of both formats raise on damaged files: flipped bytes lead
# them anywhere. NotImplementedError, of sparse tensors, is a RuntimeError.
_DAMAGED = (
  safetensors.SafetensorError,
  OSError,
  EOFError,
  RuntimeError,
  ValueError,
  TypeError,
  AttributeError,
  AssertionError,
  LookupError,
  struct.error,
)

# Bytes; the format's own limit.
_LONGEST_HEADER = 100_000_000

_SAFETENSORS = 'model.safetensors'
_INDEX = 'model.safetensors.index.json'
_TORCH = 'pytorch_model.bin'
# Files that a directory may hold, the first that is there counts.
IN_DIRECTORY = (_SAFETENSORS, _INDEX, _TORCH, f'{_TORCH}.index.json')


@dataclasses.dataclass(frozen=True)
class Tensors:
  """Tensors of a file by name; nested dicts have dotted names.

  Attributes:
    path: the file, for messages.
    shapes: of all tensors.
    load: reads one by its full name.
    plain: what the file holds besides tensors, by dotted name.
    prefix: of the full names, which `shapes` leaves out.
  """

  path: str
  shapes: Mapping[str, tuple[int, ...]]
  load: Callable[[str], np.ndarray]
  plain: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  prefix: str = ''

  def read(self, name: str) -> np.ndarray:
    """One tensor as float32.

    Raises:
      UserError: it holds NaN or infinite values, or cannot be read.
    """
    where = f'{self.path}: {self.prefix}{name}'
    try:
      value = self.load(self.prefix + name)
    except _DAMAGED as error:
      raise errors.UserError(f'{where} cannot be read: {error}') from error
    if np.iscomplexobj(value):
      raise errors.UserError(f'{where} holds complex numbers')
    value = np.asarray(value, np.float32)
    if not np.isfinite(value).all():
      raise errors.UserError(f'{where} holds NaN or infinite values')
    return value

  def section(self, prefix: str) -> 'Tensors':
    """The tensors whose name starts with `prefix`, without it."""
    inside = {
      name.removeprefix(prefix): shape
      for name, shape in self.shapes.items()
      if name.startswith(prefix)
    }
    return dataclasses.replace(self, shapes=inside, prefix=self.prefix + prefix)

  def without(self, names: Collection[str]) -> 'Tensors':
    """All but these."""
    left = {name: s for name, s in self.shapes.items() if name not in names}
    return dataclasses.replace(self, shapes=left)


def find(path: str) -> str | None:
  """The file of tensors that `path` is or that is in the directory `path`."""
  if not os.path.isdir(path):
    return path
  inside = (os.path.join(path, name) for name in IN_DIRECTORY)
  return next((name for name in inside if os.path.exists(name)), None)


def open_file(path: str) -> Tensors:
  """Opens a file of tensors, recognised by its content.

  Raises:
    UserError: truncated, of no known kind, or it needs more than tensors.
  """
  try:
    with open(path, 'rb') as file:
      start = file.read(16)
  except OSError as error:
    raise errors.UserError(
      f'{path} cannot be read: {error.strerror}'
    ) from error
  # Eight bytes of length, then JSON. Asked first: the length may begin like
  # another kind of file, whose own ninth byte makes it no possible length.
  length = int.from_bytes(start[:8], 'little')
  if start[8:9] == b'{' and length <= _LONGEST_HEADER:
    return _open_safetensors(path)
  if start.startswith((b'PK', b'\x80\x02')):  # zip since PyTorch 1.6
    return _open_torch(path)
  if start.lstrip().startswith(b'{'):
    return _open_shards(path)
  raise errors.UserError(
    f'{path} is no file of weights: expected safetensors, a PyTorch file, or '
    'a directory of ours, Hugging Face or timm'
  )


def _open_safetensors(path: str) -> Tensors:
  try:
    # Not mapped into memory but read: see _MAPPED.
    file = safetensors.safe_open(path, framework='np', backend='pread')
    shapes = {n: tuple(file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118
  except safetensors.SafetensorError as error:
    raise _unreadable(path, error) from error
  return Tensors(path, shapes, file.get_tensor)


def _open_shards(index: str) -> Tensors:
  try:
    with open(index, encoding='utf-8') as file:
      where = {n: str(s) for n, s in json.load(file)['weight_map'].items()}
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise errors.UserError(
      f'{index} is no index of shards: expected JSON with a weight_map'
    ) from error
  folder = os.path.dirname(index)
  shards = {}
  for name in sorted(set(where.values())):
    # A plain name: an index must not lead out of its directory.
    shard = os.path.join(folder, os.path.basename(name))
    if not os.path.isfile(shard):
      raise errors.UserError(f'{shard} is missing; {index} names it')
    if shard.endswith('.json'):
      raise errors.UserError(f'{index} names {name}, which is no shard')
    shards[name] = open_file(shard)
  for name, shard in where.items():
    if name not in shards[shard].shapes:
      raise errors.UserError(f'{shards[shard].path}: {name} is missing')
  shapes = {name: shards[shard].shapes[name] for name, shard in where.items()}
  return Tensors(index, shapes, lambda name: shards[where[name]].load(name))


def _open_torch(path: str) -> Tensors:
  loader = _TorchFile(path)
  shapes = {n: tuple(t.shape) for n, t in loader.tensors.items()}
  return Tensors(path, shapes, loader.read, loader.plain)


class _TorchFile:
  """A PyTorch file, mapped into memory where its format allows that."""

  def __init__(self, path: str):
    self._path = path
    self._mapped = zipfile.is_zipfile(path)
    self._open()

  def _open(self) -> None:
    torch = import_torch(f'{self._path} is a PyTorch file and')
    try:
      content = torch.load(
        self._path,
        map_location='cpu',
        weights_only=True,
        mmap=self._mapped,
      )
    except pickle.UnpicklingError as error:
      what = re.search(r'GLOBAL (\S+)', str(error))
      raise errors.UserError(
        f'{self._path} holds more than tensors and plain values, or is '
        f'truncated: it asks for {what[1] if what else "objects"}, and reading '
        'that could run any program; save its state dict alone'
      ) from error
    except _DAMAGED as error:
      raise _unreadable(self._path, error) from error
    self.tensors: dict[str, Any] = {}
    self.plain: dict[str, Any] = {}
    for name, value in _flatten(content):
      kind = self.tensors if isinstance(value, torch.Tensor) else self.plain
      kind[name] = value
    self._read_bytes = 0

  def read(self, name: str) -> np.ndarray:
    tensor = self.tensors[name].detach()
    self._read_bytes += tensor.nbytes
    value = (tensor if tensor.is_complex() else tensor.float()).numpy().copy()
    if self._mapped and self._read_bytes > _MAPPED:
      self._open()
    return value


def _flatten(content: Any, prefix: str = '') -> list[tuple[str, Any]]:
  """Leaves of nested dicts by dotted name."""
  if not isinstance(content, Mapping):
    return [(prefix[:-1], content)]
  return [
    leaf
    for name, value in content.items()
    for leaf in _flatten(value, f'{prefix}{name}.')
  ]


def _unreadable(path: str, error: Exception) -> errors.UserError:
  # PyTorch explains at length; the first sentence says it.
  reason = (str(error) or type(error).__name__).split('. ')[0].split('\n')[0]
  return errors.UserError(f'{path} cannot be read, is it truncated? {reason}')


def import_torch(what: str) -> Any:
  """PyTorch, or a line that says how to get it."""
  try:
    import torch
  except ImportError:
    raise errors.UserError(
      f"{what} needs PyTorch: pip install 'ijepa_jax[torch]'"
    ) from None
  return torch
