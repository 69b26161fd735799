"""Folders of images with masks or boxes, as sources.

Two layouts are known, each with or without splits:

DIR/images/[SPLIT/]NAME.jpg     any image, at any depth
DIR/masks/[SPLIT/]NAME.png      its class numbers, one per pixel; 255 is none
DIR/classes.txt                 optional: a name per line, from class 0 on

DIR/[SPLIT/]annotations.json    COCO's format: images, annotations, categories
DIR/[SPLIT/]images/FILE_NAME    `file_name` of an image of that file
"""

import hashlib
import json
import math
import os
from typing import Any

import numpy as np

from ijepa_jax.data import decode, dense, folder
from ijepa_jax.errors import UserError

_ANNOTATIONS = 'annotations.json'


def split_names(path: str) -> list[str]:
  """Splits of a folder in one of the layouts above; none in any other.

  Args:
    path: an existing folder.

  Raises:
    UserError: there are masks, and no images.
  """
  if _has_masks(path):
    return folder.split_names(os.path.join(path, 'images'))
  if os.path.isfile(os.path.join(path, _ANNOTATIONS)):
    return ['train']
  return [
    name
    for name in folder.SPLITS
    if os.path.isfile(os.path.join(path, name, _ANNOTATIONS))
  ]


def open_dense(path: str, split: str) -> 'MaskFolder | CocoFolder':
  """Opens one of the splits that `split_names` names.

  Raises:
    UserError: something in it is wrong.
  """
  kind = MaskFolder if _has_masks(path) else CocoFolder
  return kind(path, split)


def _has_masks(path: str) -> bool:
  return all(
    os.path.isdir(os.path.join(path, name)) for name in ('images', 'masks')
  )


class MaskFolder:
  """Images with masks of class numbers (the `dense.Masked` interface)."""

  def __init__(self, path: str, split: str):
    """Lists the images.

    Raises:
      UserError: no such split, or an image has no mask.
    """
    self._images = folder.FolderSource(os.path.join(path, 'images'), split)
    self._path = path
    self.name = f'{path} ({split})'
    self.labels: dict[str, int] = {}
    self.epoch_length = len(self._images)
    self.mask_classes = _class_names(os.path.join(path, 'classes.txt'))
    missing = [
      index
      for index in range(len(self))
      if not os.path.exists(self._mask_file(index))
    ]
    if missing:
      raise UserError(
        f'{len(missing)} of {len(self)} images have no mask; the first: '
        f'{self.record_id(missing[0])}, expected '
        f'{os.fsdecode(self._mask_file(missing[0]))}'
      )

  @property
  def fingerprint(self) -> str:
    return self._images.fingerprint

  def __len__(self) -> int:
    return len(self._images)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Reads a file; see `sources.Source`."""
    return {'image': self._images[index]['image'], 'labels': {}}

  def record_id(self, index: int) -> str:
    return self._images.record_id(index)

  def stamp(self, index: int) -> tuple[int, ...]:
    """Of image and mask, see `folder.FolderSource.stamp`."""
    mask = folder.file_stamp(self._mask_file(index))
    return *self._images.stamp(index), *mask

  def mask(self, index: int) -> np.ndarray:
    """Returns (H, W) uint8.

    Raises:
      UserError: it is no image of class numbers, or not as large as the image.
    """
    file = os.fsdecode(self._mask_file(index))
    try:
      with open(file, 'rb') as stream:
        mode, classes = decode.stored(stream.read())
    except (OSError, decode.BadImage) as error:
      raise UserError(f'{file} cannot be read: {error}') from error
    if mode not in ('1', 'L', 'P'):
      raise UserError(
        f'{file} has pixels of kind {mode}: expected a class number of 8 bits '
        'per pixel (L or P)'
      )
    try:
      width, height = _upright_size(self._images[index]['image'])
    except decode.BadImage as error:
      raise UserError(f'{self.record_id(index)}: {error}') from error
    if classes.shape != (height, width):
      raise UserError(
        f'{file} has {classes.shape[1]} x {classes.shape[0]} pixels, its image '
        f'{width} x {height}: expected the same'
      )
    mask = classes.astype(np.uint8)
    largest = int(mask[mask != dense.IGNORED].max(initial=0))
    if self.mask_classes and largest >= len(self.mask_classes):
      raise UserError(
        f'{file} has class {largest}: classes.txt names 0 to '
        f'{len(self.mask_classes) - 1}'
      )
    return mask

  def _mask_file(self, index: int) -> bytes:
    name = os.path.splitext(self._images.path(index))[0] + b'.png'
    return os.path.join(os.fsencode(self._path), b'masks', name)


class CocoFolder:
  """Images with boxes in COCO's format (the `dense.Boxed` interface)."""

  def __init__(self, path: str, split: str):
    """Reads the annotations.

    Raises:
      UserError: the file is not in COCO's format.
    """
    below = os.path.join(path, split)
    top = path if _ANNOTATIONS in os.listdir(path) else below
    file = os.path.join(top, _ANNOTATIONS)
    with open(file, 'rb') as stream:
      data = stream.read()
    try:
      held = json.loads(data)
      categories = sorted(held['categories'], key=lambda item: item['id'])
      numbers = {item['id']: i for i, item in enumerate(categories)}
      self.box_classes = tuple(str(item['name']) for item in categories)
      self._records = sorted(held['images'], key=lambda item: item['id'])
      self._sizes = [
        (int(item['width']), int(item['height'])) for item in self._records
      ]
      if any(min(size) < 1 for size in self._sizes):
        raise ValueError('an image without pixels')
      rows: dict[int, list] = {item['id']: [] for item in self._records}
      for item in held['annotations']:
        x, y, width, height = box = tuple(map(float, item['bbox']))
        if not all(map(math.isfinite, box)) or min(width, height) < 0:
          raise ValueError(f'bbox {item["bbox"]}')
        number, crowd = numbers[item['category_id']], item.get('iscrowd', 0)
        corners = x, y, x + width, y + height
        rows[item['image_id']].append((*corners, number, crowd))
      self._rows = [rows[item['id']] for item in self._records]
      self._names = [str(item['file_name']) for item in self._records]
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(
        f'{file} is not in the format of COCO: '
        f'{type(error).__name__}: {error}; expected images (id, file_name, '
        'width, height), annotations (image_id, category_id, bbox), categories '
        '(id, name)'
      ) from error
    if not self._records or not self.box_classes:
      raise UserError(f'{file} has no images or no categories')
    self._top = top
    self.name = f'{path} ({split})'
    self.labels: dict[str, int] = {}
    self.epoch_length = len(self._records)
    self.fingerprint = hashlib.blake2b(data, digest_size=16).hexdigest()

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Reads a file; see `sources.Source`."""
    with open(self._image_file(index), 'rb') as stream:
      return {'image': stream.read(), 'labels': {}}

  def record_id(self, index: int) -> str:
    return self._names[index]

  def stamp(self, index: int) -> tuple[int, int]:
    """Of the image's file, see `folder.FolderSource.stamp`."""
    return folder.file_stamp(self._image_file(index))

  def size(self, index: int) -> tuple[int, int]:
    return self._sizes[index]

  def boxes(self, index: int) -> dense.Boxes:
    rows = np.array(self._rows[index], np.float64).reshape(-1, 6)
    corners = np.clip(rows[:, :4] / np.tile(self._sizes[index], 2), 0, 1)
    return dense.Boxes(
      corners.astype(np.float32),
      rows[:, 4].astype(np.int32),
      rows[:, 5].astype(bool),
    )

  def _image_file(self, index: int) -> str:
    return os.path.join(self._top, 'images', self._names[index])


def _class_names(file: str) -> tuple[str, ...]:
  """The lines of a file, if it exists; an empty one is a class as well."""
  if not os.path.exists(file):
    return ()
  try:
    with open(file, encoding='utf-8') as stream:
      return tuple(map(str.strip, stream.read().rstrip().splitlines()))
  except (OSError, ValueError) as error:
    raise UserError(f'{file} cannot be read: {error}') from error


def _upright_size(image: bytes) -> tuple[int, int]:
  """(width, height) as the decoder gives it; BadImage as it raises it."""
  opened = decode.open_image(image)
  width, height = opened.size
  turned = decode.orientation(opened) >= 5
  return (height, width) if turned else (width, height)
