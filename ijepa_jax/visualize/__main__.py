r"""Draws what an encoder and its predictor have learnt, as PNG files.

  python -m ijepa_jax.visualize --checkpoint=runs/quickstart --images=scenes
  python -m ijepa_jax.visualize --checkpoint=model.safetensors \
    --images=~/photos --out=pictures --pictures=pca,attention

The checkpoint is whatever `ijepa_jax.convert` reads. IMAGES is a folder, whose
sub-folders are taken as classes, or the word scenes: the drawn ones.

masks        context and target blocks on images
pca          principal components of patch features as colours
similarity   which patches are like one patch, in its image and in others
attention    what each head of each block looks at from that patch
imagination  what the predictor expects in the holes, filled with real patches;
             for checkpoints with a predictor
spectrum     singular values of features, over the run's checkpoints up to it
tsne         a map of images; needs: pip install -e '.[visualize]'
sketch       features and predictions, drawn by a small decoder

visualize.json, beside them, lists file, title, explanation, command and the
figures that were measured. The same command gives the same pictures.
"""

import argparse
import functools
import json
import pathlib
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from ijepa_jax import atomic, encoder, errors
from ijepa_jax.config import arguments
from ijepa_jax.config.field import closest
from ijepa_jax.data import sources, transforms
from ijepa_jax.visualize import images, recipe
from ijepa_jax.visualize.pictures import PICTURES
from ijepa_jax.visualize.subject import Subject

INDEX = 'visualize.json'


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command.

  Args:
    argv: its arguments, default those of the process.

  Raises:
    UserError: a wrong argument, nothing to load, or no picture could be drawn.
    StorageError: DIR cannot be written.
  """
  argv = sys.argv[1:] if argv is None else argv
  args = _parse(argv)
  logging.set_verbosity(logging.ERROR)  # Orbax warns of its own files
  names = _names(args.pictures)
  if args.images != images.SCENES:  # before anything is loaded
    sources.existing_path(args.images, '--images')
  out = _folder(args.out, args.checkpoint)
  seen = Subject(
    args.checkpoint,
    args.which,
    args.heads,
    functools.partial(_load, args),
    args.patch,
  )
  _make(out)
  command = shlex.join(['python', '-m', 'ijepa_jax.visualize', *argv])
  failed = 0
  for name in names:
    picture, path = PICTURES[name], out / f'{name}.png'
    start = time.monotonic()
    try:
      figures = picture.draw(seen, path)
    except errors.StorageError:
      raise
    except errors.UserError as error:
      reason = f'{name}: not drawn: {error}'
      if len(names) == 1:
        raise errors.UserError(reason) from error
      print(reason, file=sys.stderr, flush=True)
      failed += 1
      continue
    entry = {
      'name': name,
      'file': path.name,
      'title': picture.title,
      'explanation': picture.explanation,
      'figures': dict(figures),
      'command': command,
    }
    _add(out / INDEX, entry)
    print(f'{path}: {time.monotonic() - start:.1f} s', flush=True)
  if failed == len(names):
    raise errors.UserError('nothing was drawn')


def _load(args: argparse.Namespace, model: encoder.Encoder) -> images.Images:
  """Images for an encoder; --patch is checked, now that its grid is known."""
  grid = model.architecture.grid
  if args.patch is not None and max(args.patch) >= grid:
    raise errors.UserError(
      f'--patch={args.patch[0]},{args.patch[1]}: expected 0 to {grid - 1} each'
    )
  transform = transforms.EvalTransform(
    model.architecture.image_size, model.crop
  )
  return images.load(args.images, args.count, args.image, transform)


def _names(text: str | None) -> list[str]:
  """The pictures that --pictures asks for, in our order."""
  if text is None:
    return list(PICTURES)
  asked = text.split(',')
  for name in asked:
    if name not in PICTURES:
      raise errors.UserError(
        f'--pictures={text}: expected some of {",".join(PICTURES)}; nearest '
        f"to '{name}': {closest(name, PICTURES)}"
      )
  return [name for name in PICTURES if name in asked]


def _folder(out: str | None, checkpoint: str) -> pathlib.Path:
  """Where pictures go."""
  if out is not None:
    return pathlib.Path(out).expanduser()
  run = recipe.folder_of_run(checkpoint)
  if run is None or '://' in str(run):
    sources.existing_path(checkpoint, '--checkpoint')
    raise errors.UserError(
      '--out=DIR is needed: the checkpoint is not that of a run on this '
      'machine, whose pictures go to RUN/visualize'
    )
  return pathlib.Path(run) / 'visualize'


def _make(folder: pathlib.Path) -> None:
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise errors.UserError(
      f'--out: {folder} cannot be made: {error.strerror}'
    ) from error


def _add(path: pathlib.Path, entry: Mapping[str, Any]) -> None:
  """Puts a picture into the index; those of other commands stay in it."""
  try:
    index = json.loads(path.read_text()) if path.exists() else []
    held = {picture['name']: picture for picture in index}
  except (ValueError, TypeError, KeyError) as error:
    raise errors.UserError(
      f'{path} is not an index of pictures; delete it, or give another --out'
    ) from error
  held[entry['name']] = entry
  pictures = [held[name] for name in PICTURES if name in held]
  atomic.write_text(path, json.dumps(pictures, indent=2) + '\n')


def _patch(text: str) -> tuple[int, int]:
  """`ROW,COLUMN`, from 0.

  Raises:
    ArgumentTypeError: it is something else; argparse makes one line of it.
  """
  numbers = text.split(',')
  if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
    raise argparse.ArgumentTypeError(f'{text}: expected ROW,COLUMN from 0')
  return int(numbers[0]), int(numbers[1])


def _parse(argv: Sequence[str]) -> argparse.Namespace:
  parser = arguments.Parser(
    prog='python -m ijepa_jax.visualize',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add('--checkpoint', required=True, metavar='PATH', help='see above')
  add('--images', required=True, metavar='IMAGES', help='a folder, or scenes')
  text = 'folder for the pictures (default: RUN/visualize for a run)'
  add('--out', metavar='DIR', help=text)
  add(
    '--pictures', metavar='NAME,NAME', help='some of the above (default: all)'
  )
  text = 'encoder (default %(default)s, the one that the paper evaluates)'
  add('--which', choices=('target', 'context'), default='target', help=text)
  text = 'attention heads, where neither the checkpoint nor its width tell'
  add('--heads', type=arguments.positive, metavar='N', help=text)
  text = 'images to look at (default %(default)s); 6 of them are drawn'
  add('--count', type=int, default=400, metavar='N', help=text)
  text = 'the image that similarity and attention ask about: a path below '
  text += 'IMAGES or its end, or the number of a scene (default: the first)'
  add('--image', metavar='NAME', help=text)
  text = 'the patch of that image, from 0 (default: the one whose features '
  text += 'are farthest from the mean)'
  add('--patch', type=_patch, metavar='ROW,COLUMN', help=text)
  return parser.parse_args(argv)


if __name__ == '__main__':
  with errors.exit_cleanly():
    main()
