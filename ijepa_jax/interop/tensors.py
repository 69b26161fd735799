"""Files of named tensors: safetensors and PyTorch, whole or in shards.

Only headers are read when a file is opened; a tensor is read when it is asked
for. No pickle is executed: PyTorch files go through its `weights_only` reader,
which refuses everything but tensors and plain containers.
"""

import dataclasses
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
from ijepa_jax.interop import described

# Bytes read through a memory map before it is made anew: pages that were
# touched count as memory of the process until then.
_MAPPED = 256 * 2**20

# What the readers of both formats raise on damaged files: flipped bytes lead
# them anywhere. PyTorch refuses sparse tensors with a RuntimeError too.
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

# An index must not lead out of its directory.
_FILE_NAME = described.Kind(
  'the name of a file beside it',
  lambda x: (
    isinstance(x, str)
    and x.isprintable()
    and x not in ('', '.', '..')
    and os.path.basename(x) == x
  ),
)

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
      raise errors.UserError(
        f'{where} cannot be read: {_reason(error)}'
      ) from error
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
  # Also a link to nowhere: that it cannot be read says more than nothing.
  return next((name for name in inside if os.path.lexists(name)), None)


def open_file(path: str) -> Tensors:
  """Opens a file of tensors, recognised by its content.

  Raises:
    UserError: truncated, of no known kind, or it needs more than tensors.
  """
  found = _open_whole(path) or _open_shards(path)
  for name in found.shapes:
    if not name.isprintable():  # as in messages, which are one line
      raise errors.UserError(f'{path}: {name!r} is no name of a tensor')
  return found


def _open_whole(path: str) -> Tensors | None:
  """A file that holds its tensors itself, or None for JSON."""
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
    return None
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
  where = described.read(index).section('weight_map')
  if not where.values:
    raise errors.UserError(
      f'{index} is no index of shards: expected names of files by names of '
      'tensors, as weight_map'
    )
  folder = os.path.dirname(index)
  shards: dict[str, Tensors] = {}
  for name in where.values:
    shard = where.require(name, _FILE_NAME)
    if shard in shards:
      continue
    path = os.path.join(folder, shard)
    if not os.path.lexists(path):
      raise errors.UserError(f'{path} is missing; {index} names it')
    opened = _open_whole(path)
    if opened is None:
      raise errors.UserError(f'{path} is no shard; {index} names it')
    shards[shard] = opened
  files = {name: shards[shard] for name, shard in where.values.items()}
  for name, file in files.items():
    if name not in file.shapes:
      raise errors.UserError(
        f'{file.path}: {name} is missing; {index} says that it is there'
      )
  shapes = {name: file.shapes[name] for name, file in files.items()}
  return Tensors(index, shapes, lambda name: files[name].load(name))


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
      leaves = _flatten(content)
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
    for name, value in leaves:
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
  return errors.UserError(
    f'{path} cannot be read, is it truncated? {_reason(error)}'
  )


def _reason(error: Exception) -> str:
  # PyTorch explains at length; the first sentence says it.
  return (str(error) or type(error).__name__).split('. ')[0].split('\n')[0]


def import_torch(what: str) -> Any:
  """PyTorch, or a line that says how to get it."""
  try:
    import torch
  except ImportError:
    raise errors.UserError(
      f"{what} needs PyTorch: pip install -e '.[torch]'"
    ) from None
  return torch
