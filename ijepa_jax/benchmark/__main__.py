"""Measures speed, and says on what.

  python -m ijepa_jax.benchmark step --config=configs/vith14.py
  python -m ijepa_jax.benchmark all --config=FILE[:VARIANT] --json=FILE

step        images per second, model FLOP/s, memory, host time, XLA's cost
input       images per second of the input pipeline, by stage
masks       samples per second of the mask sampler; without --config of the
            published masks
startup     seconds of imports, compilation, first batch and first step, with
            and without the persistent compilation cache
checkpoint  time that the training loop loses to a save
all         these five, one after the other

Fields are set as in training: --config.FIELD=VALUE. `step` and `checkpoint`
need no data. With --vs, `step` and `masks` also time another command in turn
with ours; the last line it prints must be a JSON object with
"images_per_second", or for `masks` with "samples_per_second".
"""

import argparse
import functools
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ijepa_jax import errors
from ijepa_jax.config import arguments, command
from ijepa_jax.config.field import closest

# In this order: `startup` first, while no accelerator is taken.
_ALL = ('startup', 'masks', 'input', 'step', 'checkpoint')
_KINDS = ('step', 'input', 'masks', 'startup', 'checkpoint', 'all')


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command.

  Args:
    argv: its arguments, default those of the process.

  Raises:
    UserError: bad arguments, config or data; a comparison that fails.
  """
  argv = sys.argv[1:] if argv is None else list(argv)
  args, config_arguments = _parse(argv)
  kinds = _ALL if args.kind == 'all' else (args.kind,)
  config = None
  if config_arguments or kinds != ('masks',) or args.vs is not None:
    config, _ = command.parse(['benchmark', *config_arguments])
  if args.vs is not None:
    # The other command may want the same accelerator. Before JAX is imported.
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')

  # After parsing: JAX takes seconds to import, a typo should not.
  from ijepa_jax.benchmark import record

  results: dict[str, Any] = {}
  for name, table, result in _measure(kinds, args, config, config_arguments):
    results[name] = result
    print(table, flush=True)
  made = record.make(argv, config and config.to_dict(), results)
  if args.json == '-':
    print(json.dumps(made))
  elif args.json:
    record.write(pathlib.Path(args.json), made)


def _measure(
  kinds: Sequence[str],
  args: argparse.Namespace,
  config: Any,
  config_arguments: list[str],
) -> Iterator[tuple[str, str, dict[str, Any]]]:
  """Yields the name, table and result of one measurement after the other."""
  from ijepa_jax.benchmark import checkpoints, compare, masks, startup, step
  from ijepa_jax.benchmark.trial import Trial
  from ijepa_jax.data import sources

  source = None
  if {'input', 'startup'} & set(kinds):  # known at once if it is missing
    source = sources.training_source(config)
  if args.vs is not None:
    compare.check(args.vs)
  trial: Callable[[], Trial] = functools.cache(lambda: Trial(config))
  limits = {'steps': args.steps, 'seconds': args.seconds}

  if 'startup' in kinds:
    result = startup.measure(config_arguments)
    yield 'startup', startup.table(result), result
  if 'masks' in kinds:
    result = masks.measure(config)
    yield 'masks', masks.table(result), result
  if 'input' in kinds:
    from ijepa_jax.benchmark import input as input_lib

    assert source is not None  # opened above
    result = input_lib.measure(config, source, seconds=args.seconds)
    yield 'input', input_lib.table(result), result
  if 'step' in kinds:
    result = step.measure_trial(trial(), **limits)
    yield 'step', step.table(result), result
  if args.vs is not None:
    if args.kind == 'masks':
      name = 'samples_per_second'
      ours = functools.partial(masks.speed_of, config)
    else:
      name = 'images_per_second'
      ours = functools.partial(trial().images_per_second, **limits)
    result = compare.measure(ours, args.vs, pairs=args.pairs, name=name)
    yield 'comparison', compare.table(result), result
  if 'checkpoint' in kinds:
    result = checkpoints.measure(trial(), args.dir)
    yield 'checkpoint', checkpoints.table(result), result


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
  """Our options, and the arguments that are the config's."""
  parser = arguments.Parser(
    prog='python -m ijepa_jax.benchmark',
    description=__doc__,
    usage='%(prog)s KIND --config=FILE [--config.FIELD=VALUE ...] [options]',
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    '--json', metavar='FILE', help='write a record; - prints it as last line'
  )
  parser.add_argument(
    '--steps',
    type=arguments.positive,
    default=50,
    metavar='N',
    help='measured steps, at most (default %(default)s)',
  )
  parser.add_argument(
    '--seconds',
    type=float,
    default=30.0,
    metavar='S',
    help='time for one measurement of step or input (default %(default)s)',
  )
  parser.add_argument(
    '--vs',
    metavar='COMMAND',
    help='with step or masks: time this in turn with ours',
  )
  parser.add_argument(
    '--pairs',
    type=arguments.positive,
    default=5,
    metavar='N',
    help='turns of --vs (default %(default)s)',
  )
  parser.add_argument(
    '--dir',
    type=pathlib.Path,
    help='with checkpoint: where to save (default: where temporary files go)',
  )
  if {'-h', '--help'} & set(argv):
    parser.print_help()
    raise SystemExit(0)
  if not argv:
    raise errors.UserError(f'expected one of {", ".join(_KINDS)}')
  kind, *rest = argv
  if kind not in _KINDS:
    raise errors.UserError(
      f"'{kind}': expected one of {', '.join(_KINDS)}; nearest: "
      f'{closest(kind, _KINDS)}'
    )
  args, config_arguments = arguments.parse_with_config(parser, rest)
  args.kind = kind
  _check(args)
  return args, config_arguments


def _check(args: argparse.Namespace) -> None:
  """Refuses options that cannot work before anything is measured."""
  if args.vs is not None and args.kind not in ('step', 'masks'):
    raise errors.UserError(
      f'--vs: expected the kind step or masks, not {args.kind}'
    )
  if args.dir is not None:
    if args.kind not in ('checkpoint', 'all'):
      raise errors.UserError(f'--dir: expected checkpoint, not {args.kind}')
    if not args.dir.is_dir():
      raise errors.UserError(f'--dir={args.dir}: no such directory')
  if args.json and not pathlib.Path(args.json).absolute().parent.is_dir():
    raise errors.UserError(f'--json={args.json}: no such directory')


if __name__ == '__main__':
  with errors.exit_cleanly():
    main()
