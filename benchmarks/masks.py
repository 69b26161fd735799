"""Speed of the mask sampler, with the published masks.

  taskset -c 0 python benchmarks/masks.py --json masks.json

Prints samples (one context and four targets each) per second of CPU time: the
sampler has one thread, and what else runs on its core does not count. All cases
take turns, so that a busy moment of the machine does not fall on one.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import statistics
import time

import numpy as np

from ijepa_jax.config import fields, validate
from ijepa_jax.data import masks, pipeline

_GEOMETRIES = ((224, 14), (224, 16), (448, 16), (96, 8))
_KEEP = ('first', 'random')
_BATCH_SIZES = (128, 2048)
_REPEATS = 15
_SAMPLES = 16_384  # per case and repeat


def published(image_size: int, patch_size: int) -> masks.MaskSpec:
  """The published masks for an image and patch size."""
  config = fields.defaults()
  config.model.image_size = image_size
  config.model.patch_size = patch_size
  return pipeline.mask_spec(validate.resolve(config))


def samples_per_second(spec: masks.MaskSpec, batch_size: int) -> float:
  """Draws `_SAMPLES` samples."""
  steps = _SAMPLES // batch_size
  start = time.process_time()
  for step in range(steps):
    masks.sample_masks(spec, 0, step, batch_size)
  return steps * batch_size / (time.process_time() - start)


def main() -> None:
  """Prints one line per case, and writes them where `--json` says."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--json', type=pathlib.Path, metavar='FILE')
  args = parser.parse_args()

  cases = list(itertools.product(_GEOMETRIES, _KEEP, _BATCH_SIZES))
  specs = {geometry: published(*geometry) for geometry in _GEOMETRIES}
  speeds: dict[tuple, list[float]] = {case: [] for case in cases}
  for repeat in range(_REPEATS + 1):
    for geometry, keep, batch_size in cases:
      spec = dataclasses.replace(specs[geometry], keep=keep)
      speed = samples_per_second(spec, batch_size)
      if repeat:  # the first one fills caches
        speeds[geometry, keep, batch_size].append(speed)

  rows = []
  for ((image_size, patch_size), keep, batch_size), values in speeds.items():
    low, median, high = statistics.quantiles(values, n=4)
    print(
      f'{image_size}/{patch_size:<3} {keep:7} batch {batch_size:5}:'
      f' {median:9,.0f} samples/s  (quartiles {low:,.0f} - {high:,.0f},'
      f' best {max(values):,.0f})'
    )
    spec = specs[image_size, patch_size]
    rows.append(
      {
        'image_size': image_size,
        'patch_size': patch_size,
        'context_tokens': spec.context_tokens,
        'target_tokens': spec.target_tokens,
        'keep': keep,
        'batch_size': batch_size,
        'median': round(median),
        'quartiles': [round(low), round(high)],
        'best': round(max(values)),
      }
    )
  if args.json:
    result = {
      'unit': 'samples per second of CPU time',
      'repeats': _REPEATS,
      'samples': _SAMPLES,
      'numpy': np.__version__,
      'cases': rows,
    }
    args.json.write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
  main()
