"""Weights in our own terms, whatever file they come from."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from ijepa_jax import errors
from ijepa_jax.interop import names
from ijepa_jax.models import predictor, sizes, vit

Which = Literal['target', 'context']


@dataclasses.dataclass(frozen=True)
class Architecture:
  """Shape of an encoder.

  Attributes:
    size: width, depth, heads, MLP ratio.
    patch_size: side of a patch in pixels.
    image_size: side of the image in pixels that the positions are for.
  """

  size: sizes.Size
  patch_size: int
  image_size: int

  @property
  def grid(self) -> int:
    """Patches per side."""
    return self.image_size // self.patch_size

  def at(self, image_size: int) -> 'Architecture':
    """The same encoder for another side of the image.

    Raises:
      UserError: the patches do not fill the image.
    """
    if image_size < self.patch_size or image_size % self.patch_size:
      nearest = max(1, round(image_size / self.patch_size)) * self.patch_size
      raise errors.UserError(
        f'image_size={image_size}: expected a multiple of the patch size '
        f'{self.patch_size}; nearest: {nearest}'
      )
    return dataclasses.replace(self, image_size=image_size)

  def encoder(self, **options: Any) -> nnx.Module:
    """The module's structure, without numbers; `options` as `vit.Encoder`."""
    return nnx.eval_shape(
      lambda: vit.Encoder(
        self.size,
        patch_size=self.patch_size,
        image_size=self.image_size,
        rngs=nnx.Rngs(0),
        **options,
      )
    )

  def predictor(self, size: sizes.Size) -> nnx.Module:
    """Structure of the encoder's predictor."""
    return nnx.eval_shape(
      lambda: predictor.Predictor(
        size, encoder_width=self.size.width, grid=self.grid, rngs=nnx.Rngs(0)
      )
    )

  def to_dict(self) -> dict[str, int]:
    """For a config.json."""
    return {
      **size_to_dict(self.size),
      'patch_size': self.patch_size,
      'image_size': self.image_size,
    }


def size_to_dict(size: sizes.Size) -> dict[str, int]:
  """For a config.json: whole numbers only."""
  return {
    'width': size.width,
    'depth': size.depth,
    'heads': size.heads,
    'hidden': size.hidden,
  }


def shapes(module: nnx.Module) -> dict[str, tuple[int, ...]]:
  """Shapes of a module's parameters by dotted path."""
  tree = nnx.to_pure_dict(nnx.state(module))
  return {path: leaf.shape for path, leaf in names.flatten(tree).items()}


class Parameters(Mapping[str, np.ndarray]):
  """Parameters by dotted path, float32, each read when it is asked for.

  Nothing is kept: a file may be larger than the memory.
  """

  def __init__(
    self,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
  ):
    self.shapes = dict(shapes)
    self._read = read

  def __getitem__(self, path: str) -> np.ndarray:
    if path not in self.shapes:
      raise KeyError(path)
    return self._read(path)

  def __iter__(self) -> Iterator[str]:
    return iter(self.shapes)

  def __len__(self) -> int:
    return len(self.shapes)

  @property
  def count(self) -> int:
    """How many numbers."""
    return sum(math.prod(shape) for shape in self.shapes.values())

  def replace(self, path: str, value: np.ndarray) -> 'Parameters':
    """The same with another value at `path`."""

    def read(name: str) -> np.ndarray:
      return value if name == path else self._read(name)

    return Parameters(self.shapes | {path: value.shape}, read)

  def without(self, *paths: str) -> 'Parameters':
    """The same but for these paths."""
    left = {path: s for path, s in self.shapes.items() if path not in paths}
    return Parameters(left, self._read)

  def tree(self, device: jax.Device | None = None) -> dict[str, Any]:
    """All of them, read one by one onto a device, as nested dicts."""
    return names.nest({p: jax.device_put(x, device) for p, x in self.items()})


@dataclasses.dataclass(frozen=True)
class Moments:
  """AdamW's state, as far as other programs know it.

  Attributes:
    count: updates made.
    mean: first moments of `'encoder'` and `'predictor'`, without positions.
    square: second moments, likewise.
  """

  count: int
  mean: dict[str, Parameters]
  square: dict[str, Parameters]


@dataclasses.dataclass(frozen=True)
class Weights:
  """What a file holds.

  Attributes:
    source: where it was found.
    format: what it was recognised as, in words.
    architecture: of the encoders.
    target: the EMA encoder.
    context: the encoder trained by gradient; the same object as `target` in a
      file with a single encoder.
    predictor: if the file has one.
    predictor_size: its width, depth and heads.
    moments: of the optimiser, if the file has them.
    progress: how far training was, such as `{'step': 1000}`.
    ours: whether it was trained here, as far as the file says.
    left_out: what the file holds besides, in words.
    crop: share of an image's shorter side that evaluation looks at.
    init_std: of the kernels before training, where the file says so.
  """

  source: str
  format: str
  architecture: Architecture
  target: Parameters
  context: Parameters
  predictor: Parameters | None = None
  predictor_size: sizes.Size | None = None
  moments: Moments | None = None
  progress: dict[str, int] = dataclasses.field(default_factory=dict)
  ours: bool = False
  left_out: tuple[str, ...] = ()
  crop: float = 0.875
  init_std: float | None = None

  @property
  def single(self) -> bool:
    """Whether there is one encoder, which serves as both."""
    return self.target is self.context

  def encoder(self, which: Which) -> Parameters:
    """The encoder of this name."""
    return {'target': self.target, 'context': self.context}[which]

  def mark(self) -> dict[str, Any]:
    """What no other program needs to know, and we want to read again.

    It is called `ijepa_jax` in all formats; see `described.read_mark`.
    """
    return {'trained_here': self.ours, 'crop': self.crop, **self.progress}


def counted(number: int, noun: str) -> str:
  """`'1 block'`, `'2 blocks'`."""
  return f'{number:,} {noun}' + ('' if number == 1 else 's')
