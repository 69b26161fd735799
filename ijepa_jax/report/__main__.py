"""Shows a run, or compares several, in one HTML file.

  python -m ijepa_jax.report RUN
  python -m ijepa_jax.report RUN1 RUN2 --out=comparison.html

The file needs no network and no other file. It can be made at any time, also
while the run trains.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Sequence

from ijepa_jax import atomic, errors, run_files
from ijepa_jax.config import arguments
from ijepa_jax.report import page


def main(argv: Sequence[str] | None = None) -> None:
  """Parses arguments, reads the runs and writes the file."""
  with errors.exit_cleanly():
    args = _parser().parse_args(argv)
    runs = _named([run_files.read(path) for path in args.runs])
    default = 'report.html' if len(runs) == 1 else 'comparison.html'
    out = args.out.expanduser() if args.out else runs[0].path / default
    atomic.write_text(out, page.render(runs))
    print(out)


def _parser() -> argparse.ArgumentParser:
  parser = arguments.Parser(
    prog='python -m ijepa_jax.report',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('runs', nargs='+', metavar='RUN', help='workdir of a run')
  parser.add_argument(
    '--out',
    type=pathlib.Path,
    metavar='FILE',
    help='default: report.html in RUN, or comparison.html in the first RUN',
  )
  return parser


def _named(runs: Sequence[run_files.Run]) -> list[run_files.Run]:
  """Tells runs of the same name apart by their paths."""
  names = [run.name for run in runs]
  return [
    dataclasses.replace(run, name=str(run.path))
    if names.count(run.name) > 1
    else run
    for run in runs
  ]


if __name__ == '__main__':
  main(sys.argv[1:])
