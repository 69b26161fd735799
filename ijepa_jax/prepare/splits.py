"""From a list of images to splits with labels, ImageNet's own tars included."""

import dataclasses
import importlib.util
import os
import re

import numpy as np

from ijepa_jax.data import folder
from ijepa_jax.errors import UserError
from ijepa_jax.prepare import archives

# ImageNet's files, as distributed. The validation tar has no folders.
_IMAGENET_TARS = {
  'train': 'ILSVRC2012_img_train.tar',
  'validation': 'ILSVRC2012_img_val.tar',
}
_VALIDATION_IMAGE = re.compile(r'ILSVRC2012_val_(\d{8})\.JPEG')


@dataclasses.dataclass(frozen=True)
class Split:
  """The images of one split.

  Attributes:
    name: 'train', ...
    listing: all images of the source, or more than one split of them.
    images: (N,) int64, which of the listing, in its order.
    labels: (N,) int64 classes, None without labels.
    classes: their names, None without labels.
  """

  name: str
  listing: archives.Listing
  images: np.ndarray
  labels: np.ndarray | None
  classes: list[str] | None


def find_splits(
  src: str, split: str | None, validation_labels: str | None
) -> list[Split]:
  """Lists a source and sorts its images into splits and classes.

  Args:
    src: a folder, zip or tar, or a folder with ImageNet's tars.
    split: the only one wanted; in a source without split folders the name for
      all of it. None: all there are.
    validation_labels: file of ImageNet's validation labels, one synset per
      line in the order of the images' numbers; None: the one in TFDS.

  Raises:
    UserError: no images, or no such split.
  """
  found: list[Split] = []
  tars = _imagenet_tars(src)
  for name, tar in tars.items():
    if split in (None, name):
      found += _splits_of(tar, name, validation_labels)
  if not tars:
    found = _splits_of(src, split, validation_labels)
  wanted = [one for one in found if split in (None, one.name)]
  if not wanted:
    names = ', '.join(repr(name) for name in tars or [x.name for x in found])
    raise UserError(f'--split={split!r}: {src} has the splits {names}')
  return wanted


def _imagenet_tars(src: str) -> dict[str, str]:
  """Split -> path of those of ImageNet's tars that a folder holds."""
  paths = {
    split: os.path.join(src, file) for split, file in _IMAGENET_TARS.items()
  }
  return {split: path for split, path in paths.items() if os.path.exists(path)}


def _splits_of(
  src: str, split: str | None, validation_labels: str | None
) -> list[Split]:
  """All splits of a source; `split` names it when it has no split folders."""
  listing = archives.list_images(src)
  if _VALIDATION_IMAGE.fullmatch(os.path.basename(listing.paths[0])):
    return [_imagenet_validation(listing, split, validation_labels)]
  return _splits_by_folder(listing, split)


def _splits_by_folder(
  listing: archives.Listing, split: str | None
) -> list[Split]:
  """Splits and classes by the rule of `folder.read_layout`."""
  names = [path.rpartition('/')[0] for path in listing.paths]
  folders = sorted(set(names))
  number = {name: position for position, name in enumerate(folders)}
  folder_of = np.array([number[name] for name in names])  # (N,)
  layout = folder.read_layout(folders)
  label_of = np.array(layout.labels)
  found = []
  for name, members in layout.splits.items():
    images = np.flatnonzero(np.isin(folder_of, members))
    labelled = layout.is_labelled(name)
    found.append(
      Split(
        name=name or split or 'train',
        listing=listing,
        images=images,
        labels=label_of[folder_of[images]] if labelled else None,
        classes=layout.classes if labelled else None,
      )
    )
  return found


def _imagenet_validation(
  listing: archives.Listing, split: str | None, labels_file: str | None
) -> Split:
  """ImageNet's validation images, whose labels come in a list of their own."""
  path = labels_file or _tfds_validation_labels()
  try:
    with open(path, encoding='utf-8') as file:
      synsets = file.read().split()
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'--validation-labels: {path}: {error}') from error
  if not all(re.fullmatch(r'n\d{8}', synset) for synset in synsets):
    raise UserError(
      f'--validation-labels: {path} must hold one synset (n01440764) per line;'
      " the numbers of the development kit's ground truth are in another order"
    )
  classes = sorted(set(synsets))
  number = {synset: label for label, synset in enumerate(classes)}
  labels = []
  for name in listing.paths:
    match = _VALIDATION_IMAGE.fullmatch(os.path.basename(name))
    if match is None or not 0 < int(match[1]) <= len(synsets):
      raise UserError(f'SRC: {name} has no label in {path}')
    labels.append(number[synsets[int(match[1]) - 1]])
  return Split(
    name=split or 'validation',
    listing=listing,
    images=np.arange(len(labels)),
    labels=np.array(labels),
    classes=classes,
  )


def _tfds_validation_labels() -> str:
  """The list inside TFDS, found without importing it (which takes seconds)."""
  spec = importlib.util.find_spec('tensorflow_datasets')
  if spec is None or spec.origin is None:
    raise UserError('--validation-labels: give the file, TFDS is not installed')
  package = os.path.dirname(spec.origin)
  return os.path.join(
    package, 'datasets', 'imagenet2012', 'validation_labels.txt'
  )
