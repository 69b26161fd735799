"""Files of golden numbers: named arrays, checkpoints, and `config.json`."""

import collections
import importlib.util
import json
import pathlib
import re
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ijepa_jax import errors
from ijepa_jax.interop import tensors

# Parts of a model, as the reference's checkpoints call them.
PARTS = ('encoder', 'predictor', 'target_encoder')


class Arrays(collections.UserDict[str, np.ndarray]):
  """The arrays of a file; knows which of them nobody asked for."""

  def __init__(self, arrays: Mapping[str, np.ndarray], path: pathlib.Path):
    super().__init__(arrays)
    self.path = path
    self._asked: set[str] = set()

  def __getitem__(self, name: str) -> np.ndarray:
    if name not in self.data:
      raise errors.UserError(f'{self.path}: the array {name} is missing')
    self._asked.add(name)
    return self.data[name]

  def section(self, prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose name starts with `prefix/`, without it."""
    start = f'{prefix}/'
    return {n.removeprefix(start): self[n] for n in self if n.startswith(start)}

  def tensors(self, prefix: str) -> dict[str, np.ndarray]:
    """The tensors under `prefix` of all parts of a model, by `PART/NAME`."""
    return {
      f'{part}/{name}': tensor
      for part in PARTS
      for name, tensor in self.section(f'{prefix}{part}').items()
    }

  def prefixes(self, pattern: str) -> list[str]:
    """What the first group of `pattern` matches in the names, each once."""
    found = (re.match(pattern, name) for name in self)
    return list(dict.fromkeys(match[1] for match in found if match))

  def unasked(self) -> list[str]:
    """First parts of the names of what was not looked at, each once."""
    left = (name.split('/')[0] for name in self if name not in self._asked)
    return list(dict.fromkeys(left))


class Folder:
  """A folder of golden numbers.

  Attributes:
    path: where it is.
    config: its `config.json`, empty if there is none.
  """

  def __init__(self, path: pathlib.Path):
    if not path.is_dir():
      raise errors.UserError(f'--golden: {path} is no directory')
    self.path = path
    self.config = read_json(path / 'config.json')

  def read(self, path: pathlib.Path) -> Arrays:
    """A file `model_NAME.npz` or `traj_NAME.npz`, with its images.

    Where they are not stored, they are drawn again from `images_seed` in
    config.json: uint8 noise.
    """
    arrays = read(path)
    entry = self.entries(path)
    seed = entry.get('images_seed')
    if 'images_u8' in arrays or seed is None:
      return arrays
    side = entry.get('image_size', 0)
    updates = len(arrays.prefixes('(masks_enc_.*)'))
    batch = arrays['masks_enc_00' if updates else 'masks_enc'].shape[1]
    shape = (*[updates][: bool(updates)], batch, 3, side, side)
    images = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    if zlib.crc32(images.tobytes()) != arrays['images_crc32']:
      raise errors.UserError(
        f'{path}: numpy {np.__version__} draws other images than those that '
        'the golden numbers were made with'
      )
    arrays['images_u8'] = images
    return arrays

  def entries(self, path: pathlib.Path) -> dict[str, Any]:
    """What config.json says for `KIND_NAME.npz`.

    Sizes stand in the entry of NAME; what belongs to one kind of file stands
    in there under `model` or `traj`.

    Raises:
      UserError: it says nothing of NAME.
    """
    kind, _, who = path.stem.partition('_')
    entry = self.config.get(who)
    if not isinstance(entry, dict):
      raise errors.UserError(
        f'{self.path / "config.json"}: expected an entry {who} with the sizes '
        f'of {path.name}'
      )
    return {**entry, **entry.get(kind, {})}


def read(path: pathlib.Path) -> Arrays:
  """The arrays of an npz file.

  Raises:
    UserError: it is damaged.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      return Arrays(dict(file), path)
  except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as e:
    raise errors.UserError(f'{path} is no readable npz file: {e}') from e


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file; empty where there is none.

  Raises:
    UserError: it is something else.
  """
  try:
    return parse_json(path.read_text(encoding='utf-8'), path)
  except FileNotFoundError:
    return {}
  except (OSError, UnicodeDecodeError) as error:
    raise errors.UserError(f'{path} is not readable: {error}') from error


def parse_json(text: str, path: pathlib.Path) -> dict[str, Any]:
  """The object that a JSON text of the file `path` is."""
  try:
    content = json.loads(text)
  except ValueError as error:
    raise errors.UserError(f'{path} holds broken JSON: {error}') from error
  if not isinstance(content, dict):
    raise errors.UserError(f'{path}: expected a JSON object')
  return content


def has_torch() -> bool:
  """Whether PyTorch is installed, which reads `.pth.tar` files."""
  return importlib.util.find_spec('torch') is not None


def read_checkpoint(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Tensors of a checkpoint of the reference: `'encoder/norm.bias'`, ..."""
  file = tensors.open_file(str(path))
  return {
    f'{part}/{name.removeprefix("module.")}': held.read(name)
    for part in PARTS
    for held in [file.section(f'{part}.')]
    for name in held.shapes
  }
