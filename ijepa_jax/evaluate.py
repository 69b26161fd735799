r"""Measures how good an encoder's frozen features are.

  python -m ijepa_jax.evaluate --checkpoint=runs/vith14 --data=DIR --tasks=knn

The checkpoint is whatever `ijepa_jax.convert` reads. DATA is `scenes`,
`tfds:NAME`, a folder with one sub-folder per class, or shards that `prepare`
wrote; or a folder with images/ and masks/, or with annotations.json in COCO's
format (docs/evaluation.md). Probes are fitted on train and measured once on
test; beside the encoder the same is done with one that was never trained, and
with raw pixels.

Features are extracted once and kept in ~/.cache/ijepa_jax/features, so that
other tasks on the same images start at once. Results go to OUT/results.json and
OUT/results.md; those of other tasks on the same checkpoint and data stay there.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from ijepa_jax import errors, user_cache
from ijepa_jax.config import arguments
from ijepa_jax.config.field import closest
from ijepa_jax.evaluation import tasks

_DEFAULT_TASKS = 'knn,ridge,logistic'


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command.

  Args:
    argv: its arguments, default those of the process.

  Raises:
    UserError: no such checkpoint, data, split or task, no labels.
  """
  argv = sys.argv[1:] if argv is None else list(argv)
  args = _parse(argv)
  names = _task_names(args.tasks)
  _require_used(argv, names)
  # After the arguments were looked at: JAX takes a second to import.
  from ijepa_jax import distributed
  from ijepa_jax.config import fields

  config = fields.defaults()
  with distributed.joined(config):
    _evaluate(args, names, argv, config)


def _evaluate(
  args: argparse.Namespace, names: list[str], argv: list[str], config: Any
) -> None:
  import jax

  from ijepa_jax.evaluation import feature_store, results_file, subject, tables
  from ijepa_jax.evaluation.tasks import needs, result

  main_process = jax.process_index() == 0

  def log(message: str) -> None:
    if main_process:
      print(message, file=sys.stderr, flush=True)

  store = feature_store.Store(None if args.no_cache else args.cache)
  try:
    measured = subject.open_subject(args, config, store, log)
    out = os.path.expanduser(args.out or measured.default_out)
    # Errors now, not after hours.
    results_file.require_mergeable(out, measured.description())
    for name in names:
      task = tasks.TASKS[name]
      needs.require(name, task.needs, measured.contexts['trained'])
    if main_process:
      results_file.make(out)
    log(measured.summary())
    results: list[result.Result] = []
    ran: dict[str, dict[str, Any]] = {}
    try:
      for name in names:
        task = tasks.TASKS[name]
        options = _options(args, name, task)
        run, begin = task.load(), time.perf_counter()
        scores = {
          kind: run(context.with_options({**options, **task.settings}))
          for kind, context in measured.contexts.items()
        }
        seconds = time.perf_counter() - begin
        log(f'{name}: {seconds:.1f} s')
        joined = result.join(
          name, scores['trained'], scores.get('init'), scores.get('pixels')
        )
        for line in measured.tell_unseen(_labels(joined) - _labels(results)):
          log(line)
        results += joined
        ran[name] = {
          'command': 'python -m ijepa_jax.evaluate ' + shlex.join(argv),
          'options': options,
          'seconds': round(seconds, 1),
          'devices': f'{jax.device_count()} {jax.devices()[0].device_kind}',
          'versions': results_file.versions(),
        }
        if main_process:
          results_file.write(
            out, measured.description(), measured.survey(), ran, results
          )
    finally:  # what is measured is kept, and shown, if the next one fails
      if main_process and results:
        print(tables.console(results))
        print(f'\n{os.path.join(out, results_file.JSON_NAME)}')
  finally:
    store.close()


def _labels(results: Iterable[Any]) -> set[str]:
  """Of the images; `lowshot` puts the size of its subset behind them."""
  return {row.label.partition('/')[0] for row in results}


def _task_names(text: str) -> list[str]:
  """Names of tasks, in the order given, groups taken apart."""
  names: list[str] = []
  for name in text.split(','):
    for one in tasks.GROUPS.get(name, (name,)):
      if one not in tasks.TASKS:
        known = [*tasks.TASKS, *tasks.GROUPS]
        raise errors.UserError(
          f'--tasks: {one!r} is not one of {", ".join(known)}; nearest: '
          f'{closest(one, known)}'
        )
      if one not in names:
        names.append(one)
  return names


def _require_used(argv: Sequence[str], names: Sequence[str]) -> None:
  """Raises a UserError for an option of a task that is not run."""
  for argument in argv:
    flag = argument.partition('=')[0]
    name, dot, _ = flag.removeprefix('--').partition('.')
    ours = flag.startswith('--') and dot and name in tasks.TASKS
    if ours and name not in names:
      raise errors.UserError(
        f'{flag}: {name} is not among --tasks={",".join(names)}'
      )


def _options(
  args: argparse.Namespace, name: str, task: tasks.Task
) -> dict[str, Any]:
  return {
    option.name: getattr(args, f'{name}.{option.name}')
    for option in task.options
  }


def _parse(argv: Sequence[str]) -> argparse.Namespace:
  parser = arguments.Parser(
    prog='python -m ijepa_jax.evaluate',
    usage='%(prog)s --checkpoint=PATH --data=DATA [--tasks=T,T] [options]',
    description=f'{__doc__}\n\ntasks:\n{_list(tasks.TASKS)}',
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add('--checkpoint', required=True, metavar='PATH', help='see above')
  add('--data', required=True, metavar='DATA', help='see above')
  text = 'with commas between, see below (default %(default)s)'
  add('--tasks', default=_DEFAULT_TASKS, metavar='T,T', help=text)
  text = 'encoder (default %(default)s, the one that the paper evaluates)'
  add('--which', choices=('target', 'context'), default='target', help=text)
  text = 'folder of results (default RUN/evaluation, of a file: beside it)'
  add('--out', metavar='DIR', help=text)
  text = 'labels to predict, with commas between (default: all)'
  add('--labels', metavar='L,L', help=text)
  add('--train-split', metavar='S', help="to fit on (default 'train')")
  text = (
    "to measure on (default 'test', 'val' or 'validation', the first that has "
    'labels; without any, a fifth of train is held out)'
  )
  add('--test-split', metavar='S', help=text)
  text = 'images to fit on (default: all; of scenes, which never end, 10,000)'
  add('--max-train', type=arguments.positive, metavar='N', help=text)
  text = 'images to measure on (default: all; of scenes 2,000)'
  add('--max-test', type=arguments.positive, metavar='N', help=text)
  text = 'side in pixels (default: as in the checkpoint)'
  add('--image-size', type=arguments.positive, metavar='S', help=text)
  text = 'of all that is drawn: subsets, scenes, the untrained encoder, heads'
  add(
    '--seed',
    type=arguments.count,
    default=0,
    metavar='N',
    help=f'{text} (default 0)',
  )
  text = 'baselines to measure (default init,pixels; none: neither)'
  add('--baselines', default='init,pixels', metavar='B,B', help=text)
  text = 'attention heads, where neither the checkpoint nor its width tell'
  add('--heads', type=arguments.positive, metavar='N', help=text)
  text = 'of matrix products while extracting (default %(default)s)'
  kinds = ('float32', 'bfloat16')
  add('--dtype', choices=kinds, default='float32', help=text)
  text = 'images per device and step of the extraction (default %(default)s)'
  add(
    '--batch-size', type=arguments.positive, default=64, metavar='N', help=text
  )
  text = "TFDS's data directory (default: its own)"
  add('--data-dir', metavar='DIR', help=text)
  text = 'where features are kept (default %(default)s)'
  where = user_cache.folder('features')
  cache = parser.add_mutually_exclusive_group().add_argument
  cache('--cache', metavar='DIR', default=where, help=text)
  cache('--no-cache', action='store_true', help='keep no features')
  for name, task in tasks.TASKS.items():
    if not task.options:
      continue
    group = parser.add_argument_group(f'options of {name}')
    for option in task.options:
      group.add_argument(
        f'--{name}.{option.name}',
        dest=f'{name}.{option.name}',
        type=option.kind,
        default=option.default,
        metavar='V',
        help=_describe(option),
      )
  return parser.parse_args(argv)


def _describe(option: tasks.Option) -> str:
  default = option.default
  if isinstance(default, tuple):
    default = ','.join(map(str, default))
  text = option.help + ('' if default is None else f' (default {default})')
  return text.replace('%', '%%')


def _list(known: dict[str, tasks.Task]) -> str:
  width = max(map(len, [*known, *tasks.GROUPS]))
  lines: Iterable[str] = [
    *(f'  {name:{width}}  {task.summary}' for name, task in known.items()),
    *(
      f'  {name:{width}}  {", ".join(group)}'
      for name, group in tasks.GROUPS.items()
    ),
  ]
  return '\n'.join(lines)


if __name__ == '__main__':
  with errors.exit_cleanly():
    main()
