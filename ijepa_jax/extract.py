r"""Writes an encoder's features of every image of a folder to one file.

  python -m ijepa_jax.extract --checkpoint=runs/vith14 --images=~/photos \
    --out=features.npz

The checkpoint is whatever `ijepa_jax.convert` reads. All images at any depth
are taken, in sorted order, those of train/, val/ and the like too: their names
tell them apart. Classes are the sub-folders, as in training, also a single one
beside other images; an image outside of them has the label -1. Files that
cannot be read are left out and listed.

FILE.npz      names (n,), features (n, D) float32, bad_files; with classes
              labels (n,) and classes; with --layers also layers (L,).
              --pool=none: (n, N, D), one row per patch, row by row;
              --layers: (n, L, D) or (n, L, N, D)
FILE.parquet  columns name, label, class, feature (lists, nested likewise); the
              schema's metadata has bad_files, classes and layers as JSON
"""

import argparse
import dataclasses
import functools
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import jax
import numpy as np

from ijepa_jax import encoder, errors, feature_files, rows, sharding
from ijepa_jax.config import arguments, fields
from ijepa_jax.data import (
  decode,
  folder,
  folder_index,
  sources,
  threads,
  transforms,
)
from ijepa_jax.interop.weights import counted
from ijepa_jax.metrics import counting


@dataclasses.dataclass(frozen=True)
class Images:
  """The images of a folder.

  Attributes:
    index: the files.
    classes: names of the classes, sorted; empty without class folders.
    labels: (N,) int32, for each file its position in `classes`, or -1.
  """

  index: folder_index.FolderIndex
  classes: list[str]
  labels: np.ndarray

  def name(self, file: int) -> str:
    """The path relative to the folder."""
    return folder.printable(self.index.path(file))


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command.

  Args:
    argv: its arguments, default those of the process.

  Raises:
    UserError: no such folder, checkpoint or layer, no readable image, FILE
      exists or has another suffix.
    StorageError: FILE cannot be written.
  """
  args = _parse(argv)
  out = feature_files.new_file(args.out, '--out')
  images = find_images(args.images)
  model = encoder.load_encoder(
    args.checkpoint,
    args.which,
    image_size=args.image_size,
    heads=args.heads,
    field='--checkpoint',
  )
  layers = _blocks(args.layers, model.architecture.size.depth)
  # Every device has the encoder, and its part of each batch.
  mesh = sharding.make_mesh(fields.defaults())
  model = jax.device_put(model, sharding.replicated(mesh))
  encode = jax.jit(encoder.features, static_argnames=('layers', 'pool'))
  compute = functools.partial(
    encode, model, layers=layers, pool=args.pool == 'mean'
  )
  side = model.architecture.image_size
  transform = transforms.EvalTransform(side, model.crop)
  try:
    os.makedirs(os.path.dirname(out), exist_ok=True)
    with tempfile.TemporaryDirectory(
      prefix=f'.{os.path.basename(out)}.', dir=os.path.dirname(out)
    ) as beside:
      # On disk: features of all patches may exceed the memory.
      path = os.path.join(beside, 'rows')
      with open(path, 'wb') as file:
        good, bad, shape = _extract(
          images, transform, compute, args.batch_size, mesh, file
        )
      classes = images.classes
      held = feature_files.Features(
        names=np.asarray([images.name(number) for number in good]),
        features=np.memmap(path, np.float32, 'r', shape=(len(good), *shape)),
        bad_files=np.asarray([images.name(k) for k, _ in bad], np.str_),
        labels=images.labels[good] if classes else None,
        classes=np.asarray(classes) if classes else None,
        layers=None if layers is None else np.asarray(layers),
      )
      made = os.path.join(beside, os.path.basename(out))
      feature_files.write(made, held)
      os.rename(made, out)
  except OSError as error:
    raise errors.StorageError(
      f'--out: {out} cannot be written: {error}; mend that and run the same '
      'command again'
    ) from error
  if bad:
    print(
      f'{counted(len(bad), "file")} cannot be read, see bad_files; the first: '
      f'{images.name(bad[0][0])}: {bad[0][1]}',
      file=sys.stderr,
      flush=True,
    )
  sizes = ' x '.join(map(str, shape))
  print(f'{out}: {counted(len(good), "image")}, features of {sizes}')


def find_images(path: str) -> Images:
  """Lists the images of a folder, all splits together.

  Args:
    path: the folder, as the user typed it.

  Raises:
    UserError: there is no such folder, or no image in it.
  """
  path = sources.existing_path(path, '--images')
  if not os.path.isdir(path):
    raise errors.UserError(f'--images: {path} is a file, expected a folder')
  index, filled, names = folder.list_folder(path, '--images')
  classes, labels = _read_classes(names)
  counts = np.diff(index.starts)  # (F,)
  repeated = np.repeat(np.asarray(labels, np.int32), counts[filled])
  return Images(index, classes, repeated)


def _read_classes(folders: Sequence[str]) -> tuple[list[str], list[int]]:
  """Names of the classes, and each folder's position in them, or -1.

  Those of training, for which a single class is none; here it tells the images
  in its folder from the others.
  """
  layout = folder.read_layout(folders)
  if layout.classes:
    return layout.classes, layout.labels
  used = [number for split in layout.splits.values() for number in split]
  parts = [tuple(filter(None, name.split('/'))) for name in folders]
  # Where there is no choice of classes, the folders lie one in the other.
  level = min(len(parts[number]) for number in used)
  inside = [number for number in used if len(parts[number]) > level]
  labels = [0 if number in inside else -1 for number in range(len(folders))]
  return sorted({parts[number][level] for number in inside}), labels


def _extract(
  images: Images,
  transform: transforms.EvalTransform,
  compute: Any,
  batch_size: int,
  mesh: jax.sharding.Mesh,
  out: BinaryIO,
) -> tuple[np.ndarray, list[tuple[int, str]], tuple[int, ...]]:
  """Writes the features of all readable images to `out`, end to end.

  `compute` takes uint8 `(B, S, S, 3)`, split over the mesh: B = `batch_size` at
  most, rounded up to a multiple of its devices.

  Returns:
    The files used, those that cannot be read and why, the shape of a row.

  Raises:
    UserError: none can be read.
  """
  count = len(images.index)
  size = min(batch_size, count)
  size += -size % mesh.size
  side = transform.image_size
  blank = np.zeros((side, side, 3), np.uint8)
  read = functools.partial(read_image, images.index, transform)
  good = np.ones(count, bool)
  bad: list[tuple[int, str]] = []

  def pixels() -> Iterator[np.ndarray]:
    # Two batches ahead: one for the device, one being decoded meanwhile.
    found = threads.in_threads(read, range(count), 2 * size)
    for file, result in enumerate(found):
      if isinstance(result, str):
        good[file] = False
        bad.append((file, result))
        yield blank
      else:
        yield result

  shape: tuple[int, ...] = ()
  done = 0
  with counting.Counter('features', count, 'images') as counter:
    for block in rows.Shares(mesh, size).stream(
      pixels(), count, blank.shape, blank.dtype, compute
    ):
      shape = block.shape[1:]
      kept = block[good[done : done + len(block)]]
      out.write(np.ascontiguousarray(kept, np.float32).data)
      done += len(block)
      counter.add(len(block))
  if not good.any():
    raise errors.UserError(
      f'--images: none can be read; the first of {counted(len(bad), "image")}: '
      f'{images.name(bad[0][0])}: {bad[0][1]}'
    )
  return np.flatnonzero(good), bad, shape


def read_image(
  index: folder_index.FolderIndex,
  transform: transforms.EvalTransform,
  file: int,
) -> np.ndarray | str:
  """Pixels `(S, S, 3)` uint8 of a file, or why there are none."""
  try:
    path = os.path.join(os.fsencode(index.root), index.path(file))
    with open(path, 'rb') as stream:
      return transform(decode.decode(stream.read()))
  except OSError as error:
    return error.strerror or str(error)
  except decode.BadImage as error:
    return str(error)


def _blocks(text: str | None, depth: int) -> tuple[int, ...] | None:
  """What --layers asks of an encoder of this depth."""
  if text is None:
    return None
  try:
    numbers = tuple(int(number) for number in text.split(','))
  except ValueError:
    numbers = ()
  if not numbers or min(numbers) < -depth or max(numbers) >= depth:
    raise errors.UserError(
      f'--layers={text}: expected numbers from {-depth} to {depth - 1} with '
      'commas between'
    )
  return numbers


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = arguments.Parser(
    prog='python -m ijepa_jax.extract',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('--checkpoint', required=True, metavar='PATH', help='see above')
  add('--images', required=True, metavar='FOLDER', help='any depth')
  add('--out', required=True, metavar='FILE', help='.npz or .parquet; new')
  text = 'one vector per image, or one per patch (default %(default)s)'
  add('--pool', choices=('mean', 'none'), default='mean', help=text)
  text = 'blocks from 0, or from the end: -1 is the last (default: it alone)'
  add('--layers', metavar='K,K', help=text)
  text = 'encoder (default %(default)s, the one that the paper evaluates)'
  add('--which', choices=('target', 'context'), default='target', help=text)
  text = 'attention heads, where neither the checkpoint nor its width tell'
  add('--heads', type=arguments.positive, metavar='N', help=text)
  text = 'side in pixels (default: as in the checkpoint)'
  add('--image-size', type=arguments.positive, metavar='S', help=text)
  text = 'images per step of all devices (default %(default)s)'
  add(
    '--batch-size', type=arguments.positive, default=64, metavar='N', help=text
  )
  return parser.parse_args(argv)


if __name__ == '__main__':
  with errors.exit_cleanly():
    main()
