"""Golden numbers as our parameters, batches and model sizes."""

import dataclasses
import fractions
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import parity_files

from ijepa_jax import errors
from ijepa_jax.interop import names
from ijepa_jax.models import sizes

TABLES = {
  'encoder': names.ENCODER,
  'predictor': names.PREDICTOR,
  'target_encoder': names.ENCODER,
}

# --- Parameters ------------------------------------------------------------


def to_ours(tensors: Mapping[str, np.ndarray], part: str, path: Any) -> dict:
  """Our parameters of a part of the model.

  Args:
    tensors: the reference's, by `PART/NAME`.
    part: a key of `TABLES`.
    path: of their file, for messages.

  Raises:
    UserError: a tensor is missing, or unknown.
  """
  start = f'{part}/'
  held = {
    name.removeprefix(start): array
    for name, array in tensors.items()
    if name.startswith(start)
  }
  try:
    return names.tree(TABLES[part], held)
  except KeyError as error:
    raise errors.UserError(
      f'{path}: the tensors of {part} are not those of the reference: {error}'
    ) from error


def to_theirs(parts: Mapping[str, dict]) -> dict[str, np.ndarray]:
  """The reference's tensors, by `PART/NAME`, made of our parameters."""
  found = {}
  for part, tree in parts.items():
    ours = names.flatten(tree)
    for entry in TABLES[part]:
      for name, array in names.scatter(entry, np.asarray(ours[entry.ours])):
        found[f'{part}/{name}'] = array
  return found


# --- Sizes -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Shape:
  """Sizes of a model.

  Attributes:
    encoder: its size.
    predictor: its size.
    patch_size: pixels.
    image_size: pixels.
  """

  encoder: sizes.Size
  predictor: sizes.Size
  patch_size: int
  image_size: int

  @property
  def patches(self) -> int:
    """Of an image, `N`."""
    return (self.image_size // self.patch_size) ** 2


def shape_of(
  said: Mapping[str, Any], encoder: dict, predictor: dict | None = None
) -> Shape:
  """Sizes as the tensors have them; only heads leave no trace there.

  Args:
    said: what `config.json` says of the model; checked.
    encoder: our parameters.
    predictor: ours too; None: any will do.

  Raises:
    UserError: `config.json` says otherwise.
  """
  heads = said.get('heads')
  if heads is None:
    raise errors.UserError('config.json: the heads of an encoder are missing')
  size = trunk_size(encoder, heads)
  patch = math.isqrt(encoder['patch_embed']['kernel'].shape[0] // 3)
  image = patch * math.isqrt(encoder['pos_embed'].shape[0])
  found: dict[str, Any] = {
    'width': size.width,
    'depth': size.depth,
    'patch_size': patch,
    'image_size': image,
  }
  predictor_size = sizes.Size(size.width, 1, heads)
  if predictor is not None:
    predictor_size = trunk_size(predictor, said.get('predictor_heads') or heads)
    found['predictor_width'] = predictor_size.width
    found['predictor_depth'] = predictor_size.depth
    if predictor_size.mlp_ratio != 4:
      raise errors.UserError(
        'the MLP ratio of a predictor is '
        f'{float(predictor_size.mlp_ratio):g}, expected 4 as in the reference'
      )
  for name, value in found.items():
    if said.get(name, value) != value:
      raise errors.UserError(
        f'config.json: {name} is {said[name]}, the tensors have {value}'
      )
  ratio = said.get('mlp_ratio')
  if ratio is not None and int(size.width * ratio) != size.hidden:
    raise errors.UserError(
      f'config.json: mlp_ratio is {ratio}, the tensors have {size.hidden} '
      f'hidden channels for a width of {size.width}'
    )
  return Shape(size, predictor_size, patch, image)


def trunk_size(part: dict, heads: int) -> sizes.Size:
  """Size of an encoder or predictor, from our parameters."""
  depth, width, hidden = part['trunk']['blocks']['fc1']['kernel'].shape
  if width % heads or width % 4:
    raise errors.UserError(
      f'a width of {width} with {heads} heads: expected a multiple of both '
      'the heads and 4'
    )
  return sizes.Size(width, depth, heads, fractions.Fraction(hidden, width))


# --- Images and masks ------------------------------------------------------


def normalise(pixels: Any) -> Any:
  """The golden numbers' own normalisation of uint8 images."""
  return (pixels - np.float32(127.5)) / np.float32(64)


def channels_last(images: np.ndarray) -> np.ndarray:
  """`(..., 3, S, S)` to `(..., S, S, 3)`."""
  return np.moveaxis(images, -3, -1)


def pad(x: np.ndarray, length: int) -> np.ndarray:
  """Pads the last axis to `length`."""
  return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, length - x.shape[-1])])


def make_batch(
  images: np.ndarray,
  context: np.ndarray,
  target: np.ndarray,
  length: tuple[int, int] = (0, 0),
) -> dict[str, np.ndarray]:
  """A batch as the step takes it.

  With several contexts every image is there once per context, first all
  images with their first context: each context predicts all targets, and the
  loss is the mean over all.

  Args:
    images: uint8 `(B, 3, S, S)`.
    context: `(E, B, K)`, `E` contexts of each image.
    target: `(M, B, T)`.
    length: padded to these `K` and `T`, where they are larger.

  Returns:
    Fields of a batch of `E * B` images.
  """
  contexts, rows, tokens = context.shape
  context = context.reshape(-1, tokens).astype(np.int32)  # (E * B, K)
  target = target.swapaxes(0, 1).astype(np.int32)  # (B, M, T)
  queries = target.shape[-1]
  return {
    'image': np.tile(channels_last(images), (contexts, 1, 1, 1)),
    'context': pad(context, max(length[0], tokens)),
    'context_length': np.full(contexts * rows, tokens, np.int32),
    'target': np.tile(pad(target, max(length[1], queries)), (contexts, 1, 1)),
    'target_length': np.full(contexts * rows, queries, np.int32),
  }


def check_masks(
  path: Any, shape: Shape, images: np.ndarray, *masks: np.ndarray
) -> None:
  """Raises a UserError for masks that do not fit the images `(B, ...)`."""
  sides = (3, shape.image_size, shape.image_size)
  if images.shape[1:] != sides:
    raise errors.UserError(
      f'{path}: images of shape {images.shape[1:]}, expected {sides}'
    )
  for mask in masks:
    if mask.ndim != 3 or mask.shape[1] != len(images) or not mask.size:
      raise errors.UserError(
        f'{path}: masks of shape {mask.shape}, expected (blocks, '
        f'{len(images)}, patches)'
      )
    if mask.min() < 0 or mask.max() >= shape.patches:
      raise errors.UserError(
        f'{path}: masks name patches from {mask.min()} to {mask.max()}, there '
        f'are {shape.patches}'
      )


def block_by_block(x: jax.typing.ArrayLike) -> np.ndarray:
  """`(E * B, M, ...)` to the reference's `(M * E * B, ...)`."""
  x = np.asarray(x).swapaxes(0, 1)
  return x.reshape(-1, *x.shape[2:])


def masks_by_update(
  arrays: parity_files.Arrays,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Contexts and targets of one update after the other."""
  for name in arrays.prefixes('masks_enc_(.*)'):
    yield arrays[f'masks_enc_{name}'], arrays[f'masks_pred_{name}']
