r"""Plans a run on devices that are not here: does it fit, how long, what binds.

  python -m ijepa_jax.plan --config=configs/vith14.py --devices=64 \
      --accelerator=h100-80gb [--config.mesh.fsdp=8]
  python -m ijepa_jax.plan --config=configs/vith14.py --accelerator=h100-80gb \
      --sweep --out=scaling.png

The real training step is compiled for the mesh on simulated devices, and what
each device would compute, keep and send is counted in the program that XLA's
partitioner makes. Times follow from the vendors' figures (accelerators.py) and
from an assumed share of the peak rate.
"""

import argparse
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from ijepa_jax import accelerators, errors
from ijepa_jax.accelerators import ACCELERATORS
from ijepa_jax.config import arguments, command
from ijepa_jax.config.field import closest

_SWEEP = (8, 16, 32, 64, 128, 256, 512, 1024)


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command.

  Args:
    argv: its arguments, default those of the process.

  Raises:
    UserError: bad arguments or config, or a mesh that does not fit.
  """
  argv = sys.argv[1:] if argv is None else list(argv)
  args, config_arguments = _parse(argv)
  config, _ = command.parse(['plan', *config_arguments])
  _simulate(max(_SWEEP) if args.sweep else args.devices)

  # After parsing: JAX takes seconds to import, a typo should not.
  from ijepa_jax.benchmark import record
  from ijepa_jax.plan import plan, predict, sweep

  config, notes = plan.prepare(config)
  assumed = predict.Assumed(
    args.accelerator,
    args.utilisation,
    args.images or plan.IMAGES.get(config.data.source),
  )
  results: Any
  if args.sweep:
    results = sweep.make(config, _SWEEP, assumed)
    print(sweep.table(results), flush=True)
    if args.out:
      sweep.draw(args.out, results, assumed)
  else:
    results = plan.make(config, args.devices, assumed)
    print(plan.table(results, assumed), flush=True)
  print('\n'.join((*notes, plan.LEFT_OUT)))
  if args.json:
    command_line = shlex.join(['python', '-m', 'ijepa_jax.plan', *argv])
    record.write(args.json, {'command': command_line, 'results': results})


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  """Our options, and the arguments that are the config's."""
  parser = arguments.Parser(
    prog='python -m ijepa_jax.plan',
    description=__doc__,
    usage='%(prog)s --config=FILE --accelerator=NAME --devices=N '
    '[--config.FIELD=VALUE ...] [options]',
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    '--devices', type=arguments.positive, metavar='N', help='of all hosts'
  )
  parser.add_argument(
    '--accelerator', metavar='NAME', help=', '.join(ACCELERATORS)
  )
  parser.add_argument(
    '--utilisation',
    type=_share,
    default=accelerators.UTILISATION,
    metavar='SHARE',
    help='of the peak rate that matrix products reach (default %(default)s)',
  )
  parser.add_argument(
    '--images',
    type=arguments.positive,
    metavar='N',
    help='training images (default: of ImageNet-1k where that is the data)',
  )
  parser.add_argument(
    '--sweep',
    action='store_true',
    help=f'plan for {_SWEEP[0]}, {_SWEEP[1]}, ... {_SWEEP[-1]} devices',
  )
  parser.add_argument(
    '--out', type=pathlib.Path, metavar='PNG', help='with --sweep: a picture'
  )
  parser.add_argument(
    '--json', type=pathlib.Path, metavar='FILE', help='write the numbers'
  )
  if {'-h', '--help'} & set(argv):
    parser.print_help()
    raise SystemExit(0)
  args, config_arguments = arguments.parse_with_config(parser, argv)
  if args.accelerator is None:
    raise errors.UserError(
      f'expected --accelerator, one of {", ".join(ACCELERATORS)}'
    )
  if args.accelerator not in ACCELERATORS:
    raise errors.UserError(
      f'--accelerator={args.accelerator}: expected one of '
      f'{", ".join(ACCELERATORS)}; nearest: '
      f'{closest(args.accelerator, ACCELERATORS)}'
    )
  if (args.devices is None) != args.sweep:
    raise errors.UserError('expected --devices=N or --sweep, one of the two')
  if args.out and not args.sweep:
    raise errors.UserError('--out: expected with --sweep')
  for name in ('out', 'json'):
    path = getattr(args, name)
    if path and not path.absolute().parent.is_dir():
      raise errors.UserError(f'--{name}={path}: no such directory')
  return args, config_arguments


def _share(text: str) -> float:
  """A number in (0, 1]."""
  number = float(text)
  if not 0 < number <= 1:
    raise argparse.ArgumentTypeError(f'{text} is not in (0, 1]')
  return number


def _simulate(devices: int) -> None:
  """Makes JAX see so many CPU devices; before it is imported."""
  flag = f'--xla_force_host_platform_device_count={devices}'
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flag}'


if __name__ == '__main__':
  with errors.exit_cleanly():
    main()
