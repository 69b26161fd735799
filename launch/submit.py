r"""Submits a training run to SLURM, after showing what will run.

  python launch/submit.py --nodes=2 --gpus=8 --time=24:00:00 \
      --config=configs/vith14.py --workdir=/shared/runs/vith14 \
      -- --config.mesh.fsdp=8

To be called in the directory of the repository. The config and its fields are
checked first, for that number of devices. The same line again continues a run
that was cancelled. What follows `--` are further flags of ijepa_jax.main.
"""

import argparse
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Sequence

from ijepa_jax import errors
from ijepa_jax import workdir as workdir_lib
from ijepa_jax.config import arguments, command, validate

_SCRIPT = pathlib.Path(__file__).with_name('slurm.sbatch')


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command.

  Args:
    argv: its arguments, default those of the process.

  Raises:
    UserError: bad arguments or config; sbatch is missing or refuses.
  """
  argv = sys.argv[1:] if argv is None else list(argv)
  split = argv.index('--') if '--' in argv else len(argv)
  args, fields = _parse(argv[:split]), argv[split + 1 :]
  workdir = pathlib.Path(args.workdir).absolute()
  flags = [f'--config={args.config}', f'--workdir={workdir}', *fields]
  config, _ = command.parse(['submit', *flags])
  validate.validate(config, args.nodes * args.tasks_per_node)
  line = [*sbatch_options(args, workdir), str(_SCRIPT), *flags]
  print(_SCRIPT.read_text())
  print(shlex.join(line), flush=True)
  if args.dry_run:
    return
  # SLURM does not make the directory that it writes the job's log to.
  workdir_lib.make(workdir)
  workdir_lib.make(workdir / 'logs')
  try:
    code = subprocess.run(line, check=False).returncode
  except FileNotFoundError as error:
    raise errors.UserError(
      'sbatch is not here: call this on a login node of a SLURM cluster'
    ) from error
  if code:
    raise errors.UserError(f'sbatch refused the job, exit code {code}')


def _parse(argv: Sequence[str]) -> argparse.Namespace:
  parser = arguments.Parser(
    prog='python launch/submit.py',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('--config', required=True, metavar='FILE.py[:VARIANT]')
  add('--workdir', required=True, metavar='DIR', help='seen by all nodes')
  add('--nodes', type=arguments.positive, default=1, metavar='N')
  add(
    '--gpus',
    type=int,
    default=8,
    metavar='N',
    help='of one node, a task for each; 0: train on the CPU (default 8)',
  )
  add(
    '--cpus-per-task',
    type=arguments.positive,
    default=8,
    metavar='N',
    help='cores for one task and its input workers (default %(default)s)',
  )
  add(
    '--time',
    required=True,
    help='limit of one attempt, as in 24:00:00 or 7-00; the run saves and is '
    'queued again before it',
  )
  add('--account', help='to be charged')
  add('--partition', help='default: that of the cluster')
  add('--name', help="of the job (default: the workdir's)")
  add(
    '--sbatch',
    action='append',
    default=[],
    metavar='OPTION',
    help='any other option of sbatch, as in --sbatch=--qos=long; repeatable',
  )
  add('--dry-run', action='store_true', help='only show it')
  args = parser.parse_args(argv)
  if args.gpus < 0:
    parser.error(f'--gpus={args.gpus}: expected 0 or more')
  args.tasks_per_node = max(args.gpus, 1)
  return args


def sbatch_options(
  args: argparse.Namespace, workdir: pathlib.Path
) -> list[str]:
  """The command and its options, without script and flags."""
  options = {
    'job-name': args.name or workdir.name,
    'nodes': args.nodes,
    'ntasks-per-node': args.tasks_per_node,
    'gpus-per-node': args.gpus or None,
    'cpus-per-task': args.cpus_per_task,
    'time': args.time,
    'account': args.account,
    'partition': args.partition,
    'output': workdir / 'logs' / 'slurm_%j.log',
  }
  return [
    'sbatch',
    *(f'--{name}={value}' for name, value in options.items() if value),
    *args.sbatch,
  ]


if __name__ == '__main__':
  with errors.exit_cleanly():
    main()
