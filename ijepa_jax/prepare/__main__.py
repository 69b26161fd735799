"""Turns images into ArrayRecord shards, for data.source='array_record'.

  python -m ijepa_jax.prepare ~/photos data/photos
  python -m ijepa_jax.prepare cifar10.zip data/cifar10
  python -m ijepa_jax.prepare DIR_OF_ILSVRC2012_TARS data/imagenet
  python -m ijepa_jax.prepare ~/photos data/small --short-side=256

SRC is a folder, a zip, a tar (compressed or not), one of ImageNet's own
ILSVRC2012_img_{train,val}.tar, or a folder that holds them. Nothing is
unpacked. Sub-folders train, val, validation and test become splits, class
sub-folders labels. Images that cannot be read are left out and listed in
bad_files.jsonl. Stopped for whatever reason, the same command goes on where it
was; the shards are the same, byte for byte, as without the stop.

With --short-side, larger images are resized and stored as JPEG: twice as fast
to train on, and not quite the same pixels. Others are stored as they are.
"""

import argparse
import os
from collections.abc import Sequence

from ijepa_jax import errors
from ijepa_jax.config import arguments
from ijepa_jax.data import sources
from ijepa_jax.prepare import run, splits
from ijepa_jax.prepare.recode import Recode

# ImageNet: 641 shards of 220 MB. Large enough to copy, small enough to redo.
_SHARD_SIZE = 2000
_QUALITY = 95


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command.

  Args:
    argv: its arguments, default those of the process.

  Raises:
    UserError: see `splits.find_splits` and `run.prepare_split`.
    Interrupted: by Ctrl-C.
  """
  args = _parse(argv)
  src = sources.existing_path(args.src, 'SRC')
  dst = os.path.abspath(os.path.expanduser(args.dst))
  try:
    for split in splits.find_splits(src, args.split, args.validation_labels):
      manifest = run.prepare_split(
        split,
        dst,
        shard_size=args.shard_size,
        seed=args.seed,
        workers=args.workers,
        recode=args.recode,
      )
      classes = len(manifest.classes or [])
      print(
        f'{split.name}: {manifest.records:,} images'
        + (f' of {classes:,} classes' if classes else ' without labels')
        + f' in {len(manifest.shards):,} shards'
        + (
          f'; {manifest.bad_files:,} files cannot be read, they are listed in '
          + os.path.join(dst, split.name, 'bad_files.jsonl')
          if manifest.bad_files
          else ''
        )
      )
  except KeyboardInterrupt:
    raise errors.Interrupted(
      'interrupted; finished shards are kept, run the same command again'
    ) from None
  print(
    'train on them with --config.data.source=array_record '
    f'--config.data.path={dst}'
  )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = arguments.Parser(
    prog='python -m ijepa_jax.prepare',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('src', metavar='SRC', help='where the images are')
  parser.add_argument(
    'dst', metavar='DST', help='directory for the shards, DST/SPLIT/'
  )
  parser.add_argument(
    '--split',
    help='prepare only this split; for a SRC without split folders, the name '
    "to give it (default 'train'; 'validation' for ILSVRC2012_img_val.tar)",
  )
  parser.add_argument(
    '--shard-size',
    type=arguments.positive,
    default=_SHARD_SIZE,
    help='images per shard (default %(default)s)',
  )
  parser.add_argument(
    '--workers',
    type=arguments.positive,
    default=os.cpu_count() or 1,
    help='processes (default: one per core, here %(default)s)',
  )
  parser.add_argument(
    '--seed',
    type=int,
    default=0,
    help='of the order of the images, which mixes the classes over the shards;'
    ' a compressed tar keeps its own order (default %(default)s)',
  )
  parser.add_argument(
    '--validation-labels',
    metavar='FILE',
    help='synsets of the images of ILSVRC2012_img_val.tar, one per line '
    '(default: the list inside TFDS)',
  )
  parser.add_argument(
    '--short-side',
    metavar='N',
    type=arguments.positive,
    help='resize images whose shorter side is longer than N pixels (default: '
    'store the files as they are)',
  )
  parser.add_argument(
    '--quality',
    metavar='Q',
    type=arguments.positive,
    help=f'of the JPEG files that --short-side makes (default {_QUALITY})',
  )
  args = parser.parse_args(argv)
  if args.quality is not None and args.short_side is None:
    parser.error('--quality: only with --short-side')
  if (args.quality or 1) > 100:
    parser.error(f'--quality: {args.quality} is above 100')
  args.recode = args.short_side and Recode(
    args.short_side, args.quality or _QUALITY
  )
  return args


if __name__ == '__main__':
  with errors.exit_cleanly():
    main()
