"""Converts weights between formats.

  python -m ijepa_jax.convert runs/vith14 exported --to=huggingface
  python -m ijepa_jax.convert jepa-latest.pth.tar imported --to=orbax

SRC is recognised by its content: a run directory or a checkpoint of ours; a
checkpoint of the authors' PyTorch code, or its bare state dict; a directory of
Hugging Face, old or new names, in shards or not; timm's safetensors or state
dict; what --to=flax wrote. Nothing in SRC is executed: PyTorch files go through
its reader for tensors only, and one that needs more is refused.

--to=orbax        a checkpoint directory, for --config.init_from
--to=flax         model.safetensors with our nested names, config.json
--to=huggingface  a directory for AutoModel.from_pretrained
--to=timm         a directory for timm.create_model('local-dir:DST')
--to=reference    the file that the authors' code loads
"""

import argparse
import sys
import time
from collections.abc import Sequence

import numpy as np
from absl import logging

from ijepa_jax import errors
from ijepa_jax.config import arguments
from ijepa_jax.interop import positions, reading, writing
from ijepa_jax.interop.weights import Weights, counted
from ijepa_jax.models import layers


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command.

  Args:
    argv: its arguments, default those of the process.

  Raises:
    UserError: SRC is no weights or damaged, DST exists, PyTorch is needed and
      missing.
  """
  args = _parse(argv)
  logging.set_verbosity(logging.ERROR)  # Orbax warns of its own files
  if args.positions == 'sincos' and args.image_size is None:
    raise errors.UserError(
      '--positions=sincos needs --image-size=S, the side in pixels'
    )
  start = time.monotonic()
  held = reading.open_weights(args.src, args.heads, field='SRC')
  _say(f'{held.source}: {_summary(held)}')
  if writing.may_be_published(held):
    _say(
      f'the weights that the authors published are under {writing.LICENCE}; '
      'SRC has their shape: if it derives from them, so does DST, under the '
      'same licence'
    )
  elif not held.ours:
    _say('SRC does not say who trained it; its licence applies to DST too')
  lost = writing.lost(held, args.to, args.which)
  if args.image_size is not None:
    held = writing.resized(held, args.image_size, _RESIZE[args.positions])
  writing.write(held, args.dst, args.to, args.which)
  if lost:
    _say(f'left out: {"; ".join(lost)}')
  print(f'{args.dst}: {args.to}, {time.monotonic() - start:.1f} s')


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = arguments.Parser(
    prog='python -m ijepa_jax.convert',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('src', metavar='SRC', help='weights, see above')
  parser.add_argument('dst', metavar='DST', help='what to make; must not exist')
  parser.add_argument(
    '--to', required=True, choices=tuple(writing.FORMATS), help='format of DST'
  )
  parser.add_argument(
    '--which',
    choices=('target', 'context'),
    help='the encoder to write (default: target; orbax keeps both unless told '
    'otherwise, reference always)',
  )
  parser.add_argument(
    '--heads',
    type=int,
    metavar='N',
    help='attention heads, where neither SRC nor its width tell',
  )
  parser.add_argument(
    '--image-size',
    type=int,
    metavar='S',
    help='make the positions fit images of S pixels (default: as in SRC)',
  )
  parser.add_argument(
    '--positions',
    choices=tuple(_RESIZE),
    default='interpolate',
    help='how --image-size does that: bicubic, as Hugging Face, or anew from '
    'the sin-cos formula (default %(default)s)',
  )
  return parser.parse_args(argv)


def _summary(held: Weights) -> str:
  size, patch = held.architecture.size, held.architecture.patch_size
  return (
    f'{held.format}; {counted(size.depth, "block")}, width {size.width}, '
    f'{counted(size.heads, "head")}, patches of {counted(patch, "pixel")}, '
    f'images of {held.architecture.image_size}, '
    f'{counted(held.target.count, "parameter")}'
  )


def _sincos(table: np.ndarray, grid: int, new_grid: int) -> np.ndarray:
  return layers.sincos_positions(table.shape[1], new_grid)


_RESIZE = {'interpolate': positions.square, 'sincos': _sincos}


def _say(message: str) -> None:
  print(message, file=sys.stderr, flush=True)


if __name__ == '__main__':
  with errors.exit_cleanly():
    main()
