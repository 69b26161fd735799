r"""Time and peak memory of converting a ViT-H/14, there and back.

  python benchmarks/convert_vith14.py --folder=/tmp/vith14 \
      --json=benchmarks/results/convert_vith14.json

Random weights: both encoders, predictor and moments of the optimiser. Each row
is one run of `python -m ijepa_jax.convert` in a process of its own. Needs
PyTorch, 45 GB of disk and 16 GB of memory. What comes back is compared with
what went in, bit by bit.
"""

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from typing import Any

import numpy as np

from ijepa_jax import checkpoint
from ijepa_jax.interop import reading, weights, writing
from ijepa_jax.interop.weights import Architecture, Moments, Parameters, Weights
from ijepa_jax.models import sizes

# Source, format; a name is that of the step that made it.
_STEPS = (
  ('source', 'reference'),
  ('reference', 'orbax'),
  ('orbax', 'huggingface'),
  ('huggingface', 'timm'),
  ('timm', 'flax'),
)
# What must be equal bit by bit, all of it or the target encoder.
_PAIRS = (('source', 'orbax', True), ('source', 'flax', False))


def main() -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--folder', required=True, help='scratch, is filled')
  parser.add_argument('--variant', default='vit_huge', choices=sizes.SIZES)
  parser.add_argument('--json', help='also write the results here')
  args = parser.parse_args()
  os.makedirs(args.folder)
  paths = {'source': os.path.join(args.folder, 'source')}
  # In another process: what this one has used counts as used by its children.
  spawn = multiprocessing.get_context('spawn')
  maker = spawn.Process(target=_make, args=(args.variant, paths['source']))
  maker.start()
  maker.join()

  rows: list[dict[str, Any]] = []
  print('from         to           seconds  peak GB  file GB  allowed GB')
  for source, format in _STEPS:
    paths[format] = os.path.join(args.folder, format)
    row = _convert(paths[source], paths[format], format)
    rows.append({'from': source, 'to': format, **row})
    print(
      f'{source:<12} {format:<12} {row["seconds"]:7.1f} {row["peak_gb"]:8.2f} '
      f'{row["file_gb"]:8.2f} {row["allowed_gb"]:11.2f}',
      flush=True,
    )
  equal = all(_equal(paths[a], paths[b], whole) for a, b, whole in _PAIRS)
  print('came back bit by bit' if equal else 'DIFFERENCES')
  if args.json:
    result = {
      'command': 'python benchmarks/convert_vith14.py',
      'variant': args.variant,
      'cores': os.cpu_count(),
      'machine': platform.machine(),
      'versions': checkpoint.versions(),
      'bitwise': equal,
      'rows': rows,
    }
    with open(args.json, 'w', encoding='utf-8') as file:
      json.dump(result, file, indent=2)
      file.write('\n')
  within = all(row['peak_gb'] <= row['allowed_gb'] for row in rows)
  sys.exit(not (equal and within))


def _make(variant: str, path: str) -> None:
  writing.write(_random(variant), path, 'orbax')


def _random(variant: str) -> Weights:
  """Weights that are drawn when they are asked for."""
  architecture = Architecture(sizes.SIZES[variant], 14, 224)
  predictor = sizes.Size(384, 12, 16)
  shapes = {
    'encoder': weights.shapes(architecture.encoder()),
    'predictor': weights.shapes(architecture.predictor(predictor)),
  }

  def draw(part: str, stream: int) -> Parameters:
    names = list(shapes[part])

    def read(path: str) -> np.ndarray:
      rng = np.random.default_rng((stream, names.index(path)))
      return rng.standard_normal(shapes[part][path], np.float32)

    return Parameters(shapes[part], read)

  def moment(stream: int) -> dict[str, Parameters]:
    return {part: draw(part, stream).without('pos_embed') for part in shapes}

  return Weights(
    source='random',
    format='random',
    architecture=architecture,
    target=draw('encoder', 0),
    context=draw('encoder', 1),
    predictor=draw('predictor', 2),
    predictor_size=predictor,
    moments=Moments(1000, moment(3), moment(4)),
    ours=True,
  )


def _convert(source: str, dst: str, format: str) -> dict[str, float]:
  """Seconds and memory of one conversion."""
  command = [sys.executable, '-m', 'ijepa_jax.convert', source, dst]
  start = time.monotonic()
  process = subprocess.Popen([*command, f'--to={format}'])
  _, status, usage = os.wait4(process.pid, 0)
  if status:
    sys.exit(f'error: {" ".join(command)} failed')
  seconds = time.monotonic() - start
  file = max(_bytes(source), _bytes(dst)) / 1e9
  return {
    'seconds': round(seconds, 1),
    'peak_gb': round(usage.ru_maxrss * 1024 / 1e9, 2),
    'file_gb': round(file, 2),
    'allowed_gb': round(1.3 * file + 1, 2),
  }


def _bytes(path: str) -> int:
  if os.path.isfile(path):
    return os.path.getsize(path)
  return sum(
    os.path.getsize(os.path.join(folder, name))
    for folder, _, names in os.walk(path)
    for name in names
  )


def _equal(first: str, second: str, whole: bool) -> bool:
  """Whether two files hold the same numbers: all, or the target encoder."""
  a, b = reading.open_weights(first), reading.open_weights(second)
  pairs = [(a.target, b.target)]
  if whole:
    assert a.predictor
    assert b.predictor
    assert a.moments
    assert b.moments
    pairs += [(a.context, b.context), (a.predictor, b.predictor)]
    for mine, theirs in (
      (a.moments.mean, b.moments.mean),
      (a.moments.square, b.moments.square),
    ):
      pairs += [(mine[part], theirs[part]) for part in mine]
  return all(np.array_equal(x[path], y[path]) for x, y in pairs for path in x)


if __name__ == '__main__':
  main()
