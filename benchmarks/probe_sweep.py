r"""Wall time of DINOv2's 52 linear heads trained together, against one head.

  python benchmarks/probe_sweep.py --json benchmarks/results/probe_sweep.json

Features are random numbers of ViT-S's width, four layers of it. Both are timed
in turns, in a process that does nothing else; what is fixed (compiling, first
of all) is told apart by training for a single epoch first. The one head is of
the largest kind; by the products of matrices alone 52 heads cost as much as
32.5 of it, so what is below that ratio is what the heads share.
"""

import argparse
import json
import os
import platform
import statistics
import time
from typing import Any

import jax
import numpy as np

from ijepa_jax.evaluation import batches, labels, moments, sweep
from ijepa_jax.evaluation.tasks import linear


def main() -> None:
  """Measures, prints, writes."""
  args = _parse()
  rng = np.random.default_rng(0)
  x = rng.normal(size=(args.images, 4, args.width)).astype(np.float32)
  codes = labels.encode({'label': rng.integers(0, args.classes, args.images)})
  rows = np.arange(args.images)
  statistics_of = moments.of(x, rows)
  preset = linear.PRESETS['dinov2']
  plan = batches.Plan(args.batch, args.images // args.batch, args.epochs)
  inputs = [
    linear.Inputs(layers, norm) for layers in (1, 4) for norm in (False, True)
  ]
  every = [
    linear.group(preset, plan, one, codes, statistics_of) for one in inputs
  ]
  # The largest kind of head, so that one is not cheap for its inputs.
  single = every[-1].only(0)

  def seconds(groups: list[sweep.Group], epochs: int) -> float:
    part = batches.Plan(plan.batch_size, plan.per_epoch, epochs)
    chunks = batches.chunks(
      lambda epoch: x,
      codes.codes,
      rows,
      part,
      seed=0,
      advance=lambda count: None,
    )
    begin = time.perf_counter()
    jax.block_until_ready(
      sweep.fit(groups, chunks, sweep.cosine(part.steps), seed=0)
    )
    return time.perf_counter() - begin

  turns: list[dict[str, Any]] = []
  for turn in range(args.turns):
    turns.append(
      {
        f'{name} heads, {epochs} epochs': round(seconds(groups, epochs), 3)
        for name, groups in (('52', every), ('1', [single]))
        for epochs in (1, args.epochs)
      }
    )
    print(f'turn {turn + 1}: {turns[-1]}', flush=True)

  def training(name: str, turn: dict[str, float]) -> float:
    whole = turn[f'{name} heads, {args.epochs} epochs']
    return whole - turn[f'{name} heads, 1 epochs']

  ratios = [training('52', turn) / training('1', turn) for turn in turns]
  whole = [
    turn[f'52 heads, {args.epochs} epochs']
    / turn[f'1 heads, {args.epochs} epochs']
    for turn in turns
  ]
  result = {
    'command': 'python benchmarks/probe_sweep.py '
    f'--images={args.images} --width={args.width} --classes={args.classes} '
    f'--batch={args.batch} --epochs={args.epochs} --turns={args.turns}',
    'device': f'{jax.device_count()} {jax.devices()[0].device_kind}',
    'host': f'{platform.machine()}, {os.cpu_count()} cores',
    'jax': jax.__version__,
    'turns, seconds': turns,
    'training, 52 heads over one, median': round(statistics.median(ratios), 2),
    'training, 52 heads over one, each turn': [round(r, 2) for r in ratios],
    'products of matrices, 52 heads over one': sum(
      one.layers * len(heads) for one, heads in zip(inputs, every)
    )
    / inputs[-1].layers,
    'with compiling, 52 heads over one, median': round(
      statistics.median(whole), 2
    ),
  }
  print(json.dumps(result, indent=1))
  if args.json:
    with open(args.json, 'w', encoding='utf-8') as file:
      file.write(json.dumps(result, indent=1) + '\n')


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--images', type=int, default=4096)
  parser.add_argument('--width', type=int, default=384)
  parser.add_argument('--classes', type=int, default=10)
  parser.add_argument('--batch', type=int, default=256)
  parser.add_argument('--epochs', type=int, default=40)
  parser.add_argument('--turns', type=int, default=3)
  parser.add_argument('--json', metavar='FILE')
  return parser.parse_args()


if __name__ == '__main__':
  main()
