"""Compares the mask sampler with statistics of the reference's collator."""

import collections
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import parity_files
import parity_report

from ijepa_jax.config import fields
from ijepa_jax.data import masks

# In standard deviations. Seeds are fixed: what passes once passes again.
DEVIATIONS = 5.0
_SIZES_DRAWN = 4000
_BATCHES_DRAWN = 500


def make_spec(grid: int) -> masks.MaskSpec:
  """The published masks on a grid, uncut."""
  mask = fields.defaults().mask
  mask.context_tokens = grid**2
  mask.target_tokens = masks.default_target_tokens(
    grid, mask.target_scale, mask.target_aspect, mask.bounds
  )
  return masks.MaskSpec(grid, **mask)


def compare_sizes(
  report: parity_report.Report, source: str, golden: parity_files.Arrays
) -> None:
  """Compares block sizes of the very random numbers that they drew."""
  if 'size_u_h_w' not in golden:
    report.skip(source, 'block sizes', 'size_u_h_w is not in the file')
    return
  spec = make_spec(int(golden['grid'][0]))
  target = spec.target_scale, spec.target_aspect
  context = spec.context_scale, (1.0, 1.0)
  wrong = 0
  # u, height, width of the targets, then of the context.
  for row in golden['size_u_h_w']:
    for (scale, aspect), (u, *theirs) in (target, row[:3]), (context, row[3:]):
      ours = masks.block_size(spec.grid, scale, aspect, u, spec.bounds)
      wrong += list(ours) != theirs
  report.add(source, 'wrong block sizes, their random numbers', wrong, 0.0)


def compare_statistics(
  report: parity_report.Report, name: str, theirs: Mapping[str, Any]
) -> None:
  """Compares a geometry of `statistics.json`; rows are standard deviations.

  Args:
    report: takes the rows.
    name: of the geometry and batch size.
    theirs: statistics over `n_batches` batches of `batch` images.
  """
  source, batches = f'masks/{name}', theirs['n_batches']
  grid, rows = theirs['grid']
  if grid != rows:
    report.skip(source, 'all', f'a grid of {grid} x {rows}, ours are square')
    return
  shares = theirs['target_block_hw']
  ours = drawn_sizes(grid)
  worst = 0.0
  for size in {*ours, *shares}:
    share = ours[size] / _SIZES_DRAWN
    both = ours[size] + shares.get(size, 0.0) * batches
    both /= _SIZES_DRAWN + batches
    chance = _chance(np.sqrt(both * (1 - both)), _SIZES_DRAWN, batches)
    worst = max(worst, abs(share - shares.get(size, 0.0)) / chance)
  report.add(source, 'shares of block sizes (deviations)', worst, DEVIATIONS)

  before, after = [], []
  for i in range(_BATCHES_DRAWN):
    drawn = masks.sample_masks(make_spec(grid), 2, i, theirs['batch'])
    before.append(drawn.uncut_length.mean())
    after.append(drawn.uncut_length.min())
  for key, values in ('ctx_before', before), ('ctx_after', after):
    chance = _chance(float(np.std(values)), _BATCHES_DRAWN, batches)
    difference = abs(np.mean(values) - theirs[key]['mean']) / chance
    report.add(source, f'mean {key} (deviations)', difference, DEVIATIONS)


@functools.cache
def drawn_sizes(grid: int) -> collections.Counter[str]:
  """How often the target blocks of a batch have which height and width."""
  spec = make_spec(grid)
  counts: collections.Counter[str] = collections.Counter()
  for i in range(_SIZES_DRAWN):
    drawn = masks.sample_masks(spec, 1, i, 1)
    block = drawn.target[0, 0, : drawn.target_length[0]]
    rows, columns = np.divmod(block, grid)
    counts[f'{np.ptp(rows) + 1}x{np.ptp(columns) + 1}'] += 1
  return counts


def _chance(deviation: float, ours: int, theirs: int) -> float:
  """Standard deviation of the difference of two means of so many draws."""
  return deviation * math.sqrt(1 / ours + 1 / theirs)
