"""Labelled images to fit on and others to measure on, wherever they are."""

import contextlib
import dataclasses
import difflib
import hashlib
import os
from typing import Any

import numpy as np

from ijepa_jax import errors
from ijepa_jax.data import dense, dense_folders, scenes, sources

# Splits to measure on where the user names none, the first that has labels.
_TEST = ('test', 'val', 'validation')
_HELD_OUT = 0.2
# Of a source without an end.
_ENDLESS = 2**30
_DEFAULT_TEST = 2_000

# Records that are looked at to see whether labels are there.
_TRIED = 16

# Classes that a message names.
_NAMED = 5

# Folders with masks or boxes, beside the kinds of `data.source`.
_DENSE = 'dense'
_PREFIXES = ('scenes', 'tfds:NAME')


@dataclasses.dataclass(frozen=True)
class Split:
  """Records of a source.

  Attributes:
    name: 'train' or 'test': what they are for.
    split: the source's own name for where they come from.
    source: opened.
    records: `(n,)` record numbers, all different.
    fingerprint: changes when records or their files change.
  """

  name: str
  split: str
  source: sources.Source
  records: np.ndarray
  fingerprint: str

  def __len__(self) -> int:
    return len(self.records)

  def describe(self) -> dict[str, Any]:
    """For results.json."""
    return {
      'split': self.split,
      'records': len(self),
      'fingerprint': self.fingerprint,
    }


@dataclasses.dataclass(frozen=True)
class Request:
  """What the user asked for.

  Attributes:
    data: 'scenes', 'tfds:NAME' or a path.
    train_split: None: 'train'.
    test_split: None: the first of test, val and validation with labels, or
      else a fifth of train.
    max_train: images at most, None: all.
    max_test: likewise.
    image_size: of images that are drawn.
    seed: chooses records, and draws images that are drawn.
    data_dir: TFDS's, None: its default.
  """

  data: str
  train_split: str | None
  test_split: str | None
  max_train: int | None
  max_test: int | None
  image_size: int
  seed: int
  data_dir: str | None = None


def open_splits(request: Request) -> tuple[Split, Split]:
  """Opens train and test.

  Raises:
    UserError: no such data or split, no labels, too few images.
  """
  kind, path = _recognise(request)
  names = _split_names(kind, path)
  train_name = request.train_split or 'train'
  _require_split('--train-split', train_name, names, request.data)
  train = _open(request, kind, path, train_name)
  if not is_labelled(train):
    raise errors.UserError(
      f'--data={request.data}: {train.name} has no labels; expected a folder '
      'with one sub-folder per class, or another source with labels, masks or '
      'boxes'
    )
  test_name, test = request.test_split, None
  if test_name is not None:
    _require_split('--test-split', test_name, names, request.data)
    test = _open(request, kind, path, test_name)
    if not is_labelled(test):
      raise errors.UserError(
        f'--test-split={test_name}: {test.name} has no labels; expected '
        'another split'
      )
  else:
    for name in (name for name in _TEST if name in names):
      if name != train_name:
        found = _open(request, kind, path, name)
        if is_labelled(found):
          test_name, test = name, found
          break
  return _choose(request, train_name, train, test_name, test)


def _choose(
  request: Request,
  train_name: str,
  train: sources.Source,
  test_name: str | None,
  test: sources.Source | None,
) -> tuple[Split, Split]:
  """Which records of the sources are used.

  Those to measure on do not depend on how many are fitted on.
  """
  rng, of_test = (
    np.random.default_rng(seed) for seed in (request.seed, (request.seed, 1))
  )
  if test is None or test_name == train_name:
    fit, measure = _sizes(request, train, None)
    _require_some(fit, train)
    if len(train) < _ENDLESS:
      # Drawn also where all are used: folders come sorted by class.
      chosen = rng.permutation(len(train))
      fitted, measured = np.sort(chosen[-fit:]), np.sort(chosen[:measure])
    else:
      measured = _draw(of_test, len(train), measure)
      more = rng.choice(len(train), fit + measure, replace=False)
      fitted = np.sort(more[~np.isin(more, measured)][:fit])
    name = f'{train_name} (its fifth held out)'
    return (
      _split('train', train_name, train, fitted),
      _split('test', name, train, measured),
    )
  require_same_labels(train, test, '--test-split')
  fit, measure = _sizes(request, train, test)
  _require_some(fit, train)
  return (
    _split('train', train_name, train, _draw(rng, len(train), fit)),
    _split('test', str(test_name), test, _draw(of_test, len(test), measure)),
  )


def _require_some(fit: int, train: sources.Source) -> None:
  """Raises a UserError where nothing can be fitted, and some of it held out."""
  if fit < 2:
    raise errors.UserError(
      f'{fit} of the {len(train):,} images of {train.name} to fit on; expected '
      '2 at least'
    )


def require_same_labels(
  train: sources.Source, test: sources.Source, field: str
) -> None:
  """Makes sure that no number is two classes.

  Args:
    train: fitted on.
    test: measured on.
    field: the config field or argument that chooses `test`.

  Raises:
    UserError: they have other labels, or other classes.
  """
  said = f'{field}: {train.name} and {test.name}'
  if train.labels.keys() != test.labels.keys():
    names = (', '.join(each.labels) or 'none' for each in (train, test))
    raise errors.UserError(
      f'{said} have the labels {" and ".join(names)}: expected the same'
    )
  # Shards of a split know the classes of that split alone.
  ours, theirs = (getattr(each, 'classes', []) for each in (train, test))
  if ours != theirs:
    alone = sorted({*ours} ^ {*theirs})
    raise errors.UserError(
      f'{said} have {len(ours)} and {len(theirs)} classes, '
      f'{", ".join(map(repr, alone[:_NAMED]))}'
      f'{", ..." if len(alone) > _NAMED else ""} in one of them alone: '
      'expected the same'
    )


def _sizes(
  request: Request, train: sources.Source, test: sources.Source | None
) -> tuple[int, int]:
  """How many images to fit on, and to measure on."""
  if len(train) >= _ENDLESS:
    fit = request.max_train or train.epoch_length
    return fit, request.max_test or _DEFAULT_TEST
  if test is not None:
    return (
      min(len(train), request.max_train or len(train)),
      min(len(test), request.max_test or len(test)),
    )
  held = max(1, round(_HELD_OUT * len(train)))
  measure = min(held, request.max_test or held)
  return min(len(train) - held, request.max_train or len(train)), measure


def _draw(rng: np.random.Generator, total: int, count: int) -> np.ndarray:
  """`count` different numbers, rising."""
  if count >= total:
    return np.arange(total)
  return np.sort(rng.choice(total, count, replace=False))


def _split(
  name: str, split: str, source: sources.Source, records: np.ndarray
) -> Split:
  digest = hashlib.blake2b(source.fingerprint.encode(), digest_size=16)
  digest.update(np.asarray(records, np.int64).tobytes())
  stamp = getattr(source, 'stamp', None)
  if stamp is not None:
    stamps = np.array([stamp(int(record)) for record in records], np.int64)
    digest.update(stamps.tobytes())
  return Split(name, split, source, records, digest.hexdigest())


def _recognise(request: Request) -> tuple[str, str | None]:
  """`data.source` and `data.path` of what the user wrote."""
  data = request.data
  if data == 'scenes' and request.image_size < scenes.MIN_SIDE:
    raise errors.UserError(
      f'--image-size={request.image_size}: scenes needs at least '
      f'{scenes.MIN_SIDE} pixels'
    )
  if data.startswith('tfds:'):
    return data, request.data_dir
  if request.data_dir is not None:
    raise errors.UserError(
      f'--data-dir={request.data_dir}: only tfds:NAME has a data directory, '
      f'--data is {data}'
    )
  if data == 'scenes':
    return data, None
  near = difflib.get_close_matches(data, ('scenes', 'tfds:'), n=1)
  if not os.path.exists(os.path.expanduser(data)) and near:
    raise errors.UserError(
      f'--data={data}: neither a path nor one of {", ".join(_PREFIXES)}; did '
      f'you mean {near[0]!r}?'
    )
  path = sources.existing_path(data, '--data')
  if not os.path.isdir(path):
    raise errors.UserError(
      f'--data: {path} is a file, expected a directory; `python -m '
      'ijepa_jax.prepare SRC DST` reads zip and tar files'
    )
  for kind in ('array_record', _DENSE):
    if _split_names(kind, path):
      return kind, path
  return 'folder', path


def _split_names(kind: str, path: str | None) -> list[str]:
  if kind == _DENSE:
    return dense_folders.split_names(str(path))
  return sources.split_names(kind, path)


def _require_split(field: str, name: str, names: list[str], data: str) -> None:
  # TFDS takes slices of splits too, such as train[:10%].
  if name.partition('[')[0] not in names:
    raise errors.UserError(
      f'{field}={name}: {data} has the splits {", ".join(names)}'
    )


def _open(
  request: Request, kind: str, path: str | None, split: str
) -> sources.Source:
  if kind == _DENSE:
    return dense_folders.open_dense(str(path), split)
  return sources.open_source(
    kind, path, split, image_size=request.image_size, seed=request.seed
  )


def is_labelled(source: sources.Source) -> bool:
  """Whether something is to be predicted; TFDS marks absent labels with -1."""
  if isinstance(source, dense.Masked | dense.Boxed):
    return True
  if not source.labels:
    return False
  for record in range(min(_TRIED, len(source))):
    with contextlib.suppress(OSError):  # broken ones are told of later
      return all(label >= 0 for label in source[record]['labels'].values())
  return True
