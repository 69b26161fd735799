"""The encoder for people downstream: `ijepa_jax.load_encoder`.

encoder = ijepa_jax.load_encoder('runs/vith14')
features = encoder(encoder.preprocess(image)).mean(1)  # (1, D)
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from ijepa_jax import errors, train_step
from ijepa_jax.data import decode, transforms
from ijepa_jax.interop import positions, reading, writing
from ijepa_jax.interop.weights import Architecture, Weights, Which
from ijepa_jax.models import vit


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Encoder:
  """A frozen or trainable image encoder; a pytree of its parameters.

  Pass it to `jax.jit`, `jax.grad` or an optimiser like any tree of arrays.

  Attributes:
    params: nested dict of float32 arrays, as in a checkpoint.
    architecture: width, depth, heads, patch and image size.
    dtype: of the matrix products; norms and softmax are float32.
    crop: share of the shorter side that `preprocess` looks at.
  """

  params: dict[str, Any]
  architecture: Architecture = dataclasses.field(metadata={'static': True})
  dtype: str = dataclasses.field(metadata={'static': True})
  crop: float = dataclasses.field(metadata={'static': True})

  def __call__(self, images: jax.Array) -> jax.Array:
    """Features of images.

    Args:
      images: `(B, H, W, 3)` float, normalised as `preprocess` does. Sides are
        multiples of the patch size; where they are not `image_size`, the
        positions are interpolated.

    Returns:
      `(B, N, D)` float32, one row per patch, row by row, after the final norm.
      Average over axis 1 for one vector per image.

    Raises:
      ValueError: `images` has another shape.
    """
    return _encode(self, jnp.asarray(images))

  def layers(
    self, images: jax.Array, numbers: Sequence[int]
  ) -> tuple[jax.Array, ...]:
    """Features after some of the blocks.

    Args:
      images: as for a call.
      numbers: blocks from 0, or from the end: -1 is the last.

    Returns:
      For each number `(B, N, D)` float32, after the final norm; for the last
      block the same as a call.

    Raises:
      ValueError: `images` has another shape, or there is no such block.
    """
    return _encode_layers(self, jnp.asarray(images), self._blocks(numbers))

  def attention(
    self, images: jax.typing.ArrayLike, numbers: Sequence[int]
  ) -> tuple[jax.Array, ...]:
    """How much each patch looks at the others in some of the blocks.

    Args:
      images: as for a call.
      numbers: blocks from 0, or from the end: -1 is the last.

    Returns:
      For each number `(B, H, N, N)` float32: head, patch that looks, patch that
      is looked at. The weights of a patch that looks sum to 1.

    Raises:
      ValueError: `images` has another shape, or there is no such block.
    """
    return _attention(self, jnp.asarray(images), self._blocks(numbers))

  def preprocess(
    self, images: Image.Image | np.ndarray | Sequence[Image.Image | np.ndarray]
  ) -> np.ndarray:
    """What the encoder expects: a central square, resized and normalised.

    Args:
      images: a PIL image, uint8 pixels `(H, W, 3)` or `(B, H, W, 3)`, or a
        list of images.

    Returns:
      `(B, S, S, 3)` float32, S = `architecture.image_size`; B is 1 for a single
      image.

    Raises:
      ijepa_jax.errors.UserError: not an image of 8 bits per channel.
    """
    if isinstance(images, np.ndarray | jax.Array):
      images = np.asarray(images)
      images = list(images if images.ndim == 4 else images[None])
    elif isinstance(images, Image.Image):
      images = [images]
    transform = transforms.EvalTransform(
      self.architecture.image_size, self.crop
    )
    squares = []
    for image in images:
      if not isinstance(image, Image.Image | np.ndarray):
        raise errors.UserError(
          f'preprocess: {type(image).__name__}, expected PIL images or pixels'
        )
      try:
        rgb = (
          decode.pixels(image)
          if isinstance(image, Image.Image)
          else decode.decode(image)
        )
      except decode.BadImage as error:
        raise errors.UserError(f'preprocess: {error}') from error
      squares.append(transform(rgb))
    if not squares:
      raise errors.UserError('preprocess: no images')
    return train_step.normalise(np.stack(squares))

  def _blocks(self, numbers: Sequence[int]) -> tuple[int, ...]:
    """Numbers of blocks from 0."""
    depth = self.architecture.size.depth
    for number in numbers:
      if not -depth <= number < depth:
        raise ValueError(f'layer {number}: expected {-depth} to {depth - 1}')
    return tuple(number % depth for number in numbers)

  def _module(self, images: jax.Array) -> vit.Encoder:
    """The module for images of this shape."""
    patch, grid = self.architecture.patch_size, self.architecture.grid
    if images.ndim != 4 or images.shape[3] != 3:
      raise ValueError(f'images {images.shape}: expected (B, H, W, 3)')
    if not jnp.issubdtype(images.dtype, jnp.floating):
      raise ValueError(
        f'images are {images.dtype}: expected normalised floats, see preprocess'
      )
    height, width = images.shape[1:3]
    if height % patch or width % patch or not height or not width:
      raise ValueError(
        f'images {images.shape}: expected sides that are multiples of the '
        f'patch size {patch}'
      )
    params = dict(self.params)
    new_grid = height // patch, width // patch
    if new_grid != (grid, grid):
      rows, columns = (
        positions.axis_weights(grid, new).astype(np.float32) for new in new_grid
      )
      cells = params['pos_embed'].reshape(grid, grid, -1)
      table = jnp.einsum(
        'ah,bw,hwd->abd', rows, columns, cells, precision='highest'
      )
      params['pos_embed'] = table.reshape(-1, table.shape[-1])
    module = self.architecture.encoder(dtype=jnp.dtype(self.dtype))
    return nnx.merge(nnx.graphdef(module), params)


def features(
  model: Encoder,
  images: jax.Array,
  *,
  layers: tuple[int, ...] | None,
  pool: bool,
) -> jax.Array:
  """What is kept of images.

  Args:
    model: the encoder.
    images: uint8 `(B, S, S, 3)`.
    layers: as of `Encoder.layers`; None: the last, without an axis for it.
    pool: average over the patches.

  Returns:
    `(B, [L,] [N,] D)` float32.
  """
  x = train_step.normalise(images)
  outputs = (model(x),) if layers is None else model.layers(x, layers)
  if pool:
    outputs = tuple(output.mean(1) for output in outputs)
  return outputs[0] if layers is None else jnp.stack(outputs, 1)


# Compiled once per shape, also for who does not call `jax.jit`.


@jax.jit
def _encode(encoder: Encoder, images: jax.Array) -> jax.Array:
  return encoder._module(images)(images)


@functools.partial(jax.jit, static_argnums=2)
def _encode_layers(
  encoder: Encoder, images: jax.Array, numbers: tuple[int, ...]
) -> tuple[jax.Array, ...]:
  outputs = encoder._module(images).intermediate(images, numbers)
  return tuple(outputs[number] for number in numbers)


@functools.partial(jax.jit, static_argnums=2)
def _attention(
  encoder: Encoder, images: jax.Array, numbers: tuple[int, ...]
) -> tuple[jax.Array, ...]:
  weights = encoder._module(images).attention_weights(images, numbers)
  return tuple(weights[number] for number in numbers)


def load_encoder(
  path: str,
  which: Which = 'target',
  image_size: int | None = None,
  dtype: jax.typing.DTypeLike = 'float32',
  *,
  heads: int | None = None,
  field: str = 'path',
) -> Encoder:
  """Loads an encoder from whatever `ijepa_jax.convert` reads or writes.

  Args:
    path: a run's directory, a checkpoint, or weights in another format.
    which: `'target'`, the EMA encoder that the paper evaluates, or
      `'context'`. A file with a single encoder serves both.
    image_size: side of the images in pixels, a multiple of the patch size;
      the positions are interpolated. Default: as in the file.
    dtype: of the matrix products, float32 or bfloat16.
    heads: attention heads, where neither the file nor its width tell.
    field: what the user calls `path`, for messages: a command's argument.

  Returns:
    The encoder, on JAX's default device.

  Raises:
    ijepa_jax.errors.UserError: nothing there, unknown, damaged, or sizes that
      do not fit; the message is one line.
  """
  held = reading.open_weights(str(path), heads, field)
  return from_weights(held, which, image_size, dtype)


def from_weights(
  held: Weights,
  which: Which = 'target',
  image_size: int | None = None,
  dtype: jax.typing.DTypeLike = 'float32',
) -> Encoder:
  """An encoder of opened weights; arguments and errors as of `load_encoder`."""
  if which not in ('target', 'context'):
    raise errors.UserError(f"which={which!r}: expected 'target' or 'context'")
  compute = str(getattr(dtype, '__name__', dtype))
  if compute not in ('float32', 'bfloat16'):
    raise errors.UserError(f'dtype={compute}: expected float32 or bfloat16')
  if image_size is not None:
    held = writing.resized(held, image_size, positions.square)
  return Encoder(
    params=held.encoder(which).tree(),
    architecture=held.architecture,
    dtype=compute,
    crop=held.crop,
  )


def untrained(trained: Encoder, init_std: float, seed: int) -> Encoder:
  """An encoder of the same architecture, as it is before training.

  With a run's `model.init_std` and `seed` it is the encoder that the run began
  with: `train_step.IJepa` draws the encoder first.

  Args:
    trained: what it is a twin of.
    init_std: of the kernels.
    seed: of the numbers.
  """
  architecture = trained.architecture

  @jax.jit
  def parameters() -> dict[str, Any]:
    module = vit.Encoder(
      architecture.size,
      patch_size=architecture.patch_size,
      image_size=architecture.image_size,
      init_std=init_std,
      rngs=nnx.Rngs(seed),
    )
    return nnx.to_pure_dict(nnx.state(module))

  return dataclasses.replace(trained, params=parameters())
