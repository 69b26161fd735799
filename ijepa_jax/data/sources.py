"""What a data source is, and how `data.source` becomes one."""

import difflib
import os
from typing import Any, Protocol

import ml_collections

from ijepa_jax.errors import UserError

_KINDS = ('folder', 'tfds:NAME', 'array_record', 'scenes')


class Source(Protocol):
  """Images by index. Picklable: Grain's workers are spawned processes."""

  @property
  def name(self) -> str:
    """What people call it."""

  @property
  def labels(self) -> dict[str, int]:
    """Label name -> number of classes; empty when there are no labels."""

  @property
  def epoch_length(self) -> int:
    """Images per epoch (`len` for data sets that end)."""

  @property
  def fingerprint(self) -> str:
    """Changes when the data changes, not when it merely moves."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Reads a record.

    Args:
      index: 0 to len - 1.

    Returns:
      `image`: the bytes of an image file, or pixels, uint8 (H, W, 3);
      `labels`: label name -> class.

    Raises:
      OSError: the record cannot be read.
    """

  def record_id(self, index: int) -> str:
    """Names a record, also one that cannot be read, for people and logs."""


def training_source(config: ml_collections.ConfigDict) -> Source:
  """Opens what a config trains on; errors as of `open_source`."""
  return open_source(
    config.data.source,
    config.data.path,
    config.data.split,
    image_size=config.model.image_size,
    seed=config.seed,
  )


def open_source(
  source: str,
  path: str | None,
  split: str,
  *,
  image_size: int,
  seed: int,
) -> Source:
  """Opens the source that `data.source` names.

  Args:
    source: 'folder', 'tfds:NAME', 'array_record' or 'scenes'.
    path: `data.path`; for TFDS its data directory, None = TFDS's default.
    split: `data.split`.
    image_size: pixels, for sources that draw their images.
    seed: likewise.

  Returns:
    The opened source, with at least one record.

  Raises:
    UserError: there is no such source, path or split, or it holds no images.
  """
  # Each import stays here: TFDS alone takes a second, and nobody needs all.
  if source == 'scenes':
    from ijepa_jax.data import scenes

    return scenes.ScenesSource(split, image_size, seed)
  if source == 'folder':
    from ijepa_jax.data import folder

    return folder.FolderSource(_data_path(path, source), split)
  if source == 'array_record':
    from ijepa_jax.data import records

    return records.RecordsSource(_data_path(path, source), split)
  if source.startswith('tfds:'):
    from ijepa_jax.data import tfds

    return tfds.TfdsSource(source.removeprefix('tfds:'), path, split)
  near = difflib.get_close_matches(source, _KINDS, n=1, cutoff=0.4)
  raise UserError(
    f'data.source={source!r} is not one of {", ".join(_KINDS)}'
    + (f'; did you mean {near[0]!r}?' if near else '')
  )


def split_names(source: str, path: str | None) -> list[str]:
  """Names of a source's splits; none where it holds nothing of its kind.

  Args:
    source: as of `open_source`.
    path: an existing directory, where the source needs one.

  Raises:
    UserError: a folder without images, an unknown data set.
  """
  if source == 'scenes':
    from ijepa_jax.data import scenes

    return list(scenes.SPLITS)
  if source == 'array_record':
    from ijepa_jax.data import records

    return records.split_names(str(path))
  if source == 'folder':
    from ijepa_jax.data import folder

    return folder.split_names(str(path))
  from ijepa_jax.data import tfds

  return tfds.split_names(source.removeprefix('tfds:'), path)


def existing_path(path: str, field: str) -> str:
  """Expands `~` in a path that must exist, or says which one may be meant.

  Args:
    path: as the user typed it.
    field: the config field or argument it came from.

  Returns:
    The absolute path.

  Raises:
    UserError: nothing is there.
  """
  path = os.path.abspath(os.path.expanduser(path))
  if os.path.exists(path):
    return path
  # Up to the first folder that exists, then the nearest name in it.
  parent, missing = os.path.split(path)
  while not os.path.isdir(parent):
    parent, missing = os.path.split(parent)
  readable = os.access(parent, os.R_OK)
  names = os.listdir(parent) if readable else []
  near = difflib.get_close_matches(missing, names, n=1)
  raise UserError(
    f'{field}: {path} does not exist'
    + (f'; did you mean {os.path.join(parent, near[0])}?' if near else '')
  )


def _data_path(path: str | None, source: str) -> str:
  if not path:
    raise UserError(
      f'data.path is not set: data.source={source!r} needs a directory, for '
      'instance --config.data.path=/data/images'
    )
  path = existing_path(path, 'data.path')
  if not os.path.isdir(path):
    raise UserError(
      f'data.path: {path} is a file, expected a directory; `python -m '
      'ijepa_jax.prepare SRC DST` reads zip and tar files'
    )
  return path
