"""Multi-block masks: one context block and several target blocks per image.

The rule is the reference's (`src/masks/multiblock.py`; paper, section 3 and
appendix A.1), with static shapes: every array is padded to the numbers of
tokens in `MaskSpec` and carries its valid length.

Block sizes are drawn once per batch and positions once per image, both from
`(seed, step)`, for the whole global batch: a host takes its rows of the
result, so the masks do not depend on how many hosts or workers there are.
"""

import bisect
import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np

from ijepa_jax import errors

# Failed draws of a context before one more target may overlap it
# (`timeout` in the reference).
_DRAWS_PER_CONSTRAINT = 20
# Failed draws of a whole image under full bounds before giving up.
_MAX_REDRAWS = 1000
# Separates the mask stream from other streams made of the same seed.
_STREAM = 0x6D61736B


@dataclasses.dataclass(frozen=True)
class MaskSpec:
  """What to draw. Sizes are counted in patches.

  Attributes:
    grid: patches per side of the (square) image.
    num_targets: target blocks per image, `M`.
    target_scale: range of a target block's area as a share of the image.
    target_aspect: range of a target block's height / width.
    context_scale: range of the context block's area (its aspect is 1).
    min_keep: a context must keep strictly more patches than this.
    context_tokens: `K`, length of the padded context.
    target_tokens: `T`, length of a padded target.
    keep: which patches stay of a context longer than `K`: the `'first'` in
      row-major order, as the reference's cut does, or a `'random'` subset.
    bounds: `'reference'` never touches the last row or column and, when it
      fails to place a context, lets it overlap targets, the last one first;
      `'full'` reaches every patch and never overlaps.
  """

  grid: int
  num_targets: int
  target_scale: tuple[float, float]
  target_aspect: tuple[float, float]
  context_scale: tuple[float, float]
  min_keep: int
  context_tokens: int
  target_tokens: int
  keep: str = 'first'
  bounds: str = 'reference'


@dataclasses.dataclass(frozen=True)
class Masks:
  """Masks of a batch; indices are row-major patch numbers, padded with 0.

  Attributes:
    context: `(B, K)` int32.
    context_length: `(B,)` int32, valid entries of each row of `context`.
    target: `(B, M, T)` int32.
    target_length: `(B,)` int32, valid entries of each target block: the same
      number in the whole batch, because a batch has one block size.
    uncut_length: `(B,)` int32, context patches before the cut to `K`.
    overlaps: `(B,)` bool, images whose context may overlap a target.
  """

  context: np.ndarray
  context_length: np.ndarray
  target: np.ndarray
  target_length: np.ndarray
  uncut_length: np.ndarray
  overlaps: np.ndarray


def block_size(
  grid: int,
  scale: tuple[float, float],
  aspect: tuple[float, float],
  u: float,
  bounds: str,
) -> tuple[int, int]:
  """Height and width of a block; one number `u` in [0, 1) drives both."""
  area = int(grid * grid * (scale[0] + u * (scale[1] - scale[0])))
  ratio = aspect[0] + u * (aspect[1] - aspect[0])
  limit = grid if bounds == 'full' else grid - 1
  height = min(round(math.sqrt(area * ratio)), limit)
  width = min(round(math.sqrt(area / ratio)), limit)
  return height, width


@functools.cache
def block_sizes(
  grid: int,
  scale: tuple[float, float],
  aspect: tuple[float, float],
  bounds: str,
) -> frozenset[tuple[int, int]]:
  """All `(height, width)` that `block_size` can give.

  Found on a fine grid of `u`: sizes are step functions of it, and a step
  narrower than 1 / 20,000 would be drawn about once in 20,000 batches.
  """
  return frozenset(
    block_size(grid, scale, aspect, u, bounds)
    for u in np.linspace(0.0, 1.0, 20_001)
  )


def default_target_tokens(
  grid: int,
  target_scale: tuple[float, float],
  target_aspect: tuple[float, float],
  bounds: str,
) -> int:
  """`T`: patches of the largest possible target block."""
  sizes = block_sizes(grid, target_scale, target_aspect, bounds)
  return max(height * width for height, width in sizes)


@functools.cache
def target_lengths(spec: MaskSpec, count: int) -> tuple[int, ...]:
  """Lengths to pad targets to, so that they are padded least in the mean.

  A batch has one block size, so it can be cut to the shortest of a few lengths
  that holds it. They are even, which fused attention asks for, but for
  `spec.target_tokens`, which is always the last.

  Args:
    spec: what is drawn.
    count: how many lengths, at most.

  Returns:
    Lengths, rising.
  """
  shares: collections.Counter[int] = collections.Counter()
  for u in np.linspace(0.0, 1.0, 20_001):
    area = math.prod(
      block_size(
        spec.grid, spec.target_scale, spec.target_aspect, u, spec.bounds
      )
    )
    shares[min(area + area % 2, spec.target_tokens)] += 1
  shorter = sorted(shares.keys() - {spec.target_tokens})
  chosen = min(count - 1, len(shorter))

  choices = (
    (*some, spec.target_tokens)
    for some in itertools.combinations(shorter, chosen)
  )
  return min(
    choices,
    key=lambda lengths: sum(
      share * padded_length(lengths, area) for area, share in shares.items()
    ),
  )


def padded_length(lengths: Sequence[int], size: int) -> int:
  """The shortest of some rising lengths that holds so many tokens."""
  return lengths[bisect.bisect_left(lengths, size)]


@functools.cache
def default_context_tokens(spec: MaskSpec, batch_size: int = 128) -> int:
  """`K`: mean of the reference's cut, rounded up to even.

  The reference cuts every context of a batch to the shortest one of that
  (per-GPU) batch. This is the mean of that minimum over 1,000 simulated
  batches, on a fixed seed. `spec.context_tokens` is not looked at.
  """
  whole = dataclasses.replace(spec, context_tokens=spec.grid**2)
  shortest = [
    sample_masks(whole, 0, step, batch_size).uncut_length.min()
    for step in range(1000)
  ]
  return 2 * math.ceil(float(np.mean(shortest)) / 2)


def sample_masks(
  spec: MaskSpec, seed: int, step: int, batch_size: int
) -> Masks:
  """Draws the masks of the global batch of one step.

  Args:
    spec: what to draw.
    seed: the run's seed.
    step: index of the step, from 0.
    batch_size: images in the global batch, `B`.

  Returns:
    The masks, a pure function of the arguments.

  Raises:
    UserError: no context with more than `min_keep` patches could be placed.
  """
  rng = np.random.default_rng((_STREAM, seed, step))
  target_u, context_u = rng.random(2)
  target_hw = block_size(
    spec.grid, spec.target_scale, spec.target_aspect, target_u, spec.bounds
  )
  context_hw = block_size(
    spec.grid, spec.context_scale, (1.0, 1.0), context_u, spec.bounds
  )
  target_bits = _block_bits(target_hw, spec.grid)
  context_bits = _block_bits(context_hw, spec.grid)
  draw_targets = functools.partial(_positions, rng, spec, target_hw)
  draw_contexts = functools.partial(_positions, rng, spec, context_hw)

  targets = draw_targets(batch_size, spec.num_targets)  # (B, M)
  contexts = context_bits[draw_contexts(batch_size)]  # (B, words)
  allowed = _outside(contexts, target_bits, targets)
  overlaps = np.zeros(batch_size, bool)

  failed = np.flatnonzero(_count(allowed) <= spec.min_keep)
  draws = 1
  while failed.size:
    if spec.bounds == 'full':
      constraints = spec.num_targets
      targets[failed] = draw_targets(failed.size, spec.num_targets)
    else:
      constraints = max(spec.num_targets - draws // _DRAWS_PER_CONSTRAINT, 0)
    contexts = context_bits[draw_contexts(failed.size)]
    avoided = targets[failed, :constraints]
    allowed[failed] = _outside(contexts, target_bits, avoided)
    overlaps[failed] = constraints < spec.num_targets
    failed = failed[_count(allowed[failed]) <= spec.min_keep]
    draws += 1
    if draws > _MAX_REDRAWS:
      raise errors.UserError(
        f'mask: no context of more than min_keep={spec.min_keep} patches '
        f'found in {_MAX_REDRAWS} draws on a {spec.grid}x{spec.grid} grid; '
        'lower mask.min_keep, mask.target_scale or mask.num_targets'
      )

  uncut = _count(allowed)
  length = np.minimum(uncut, spec.context_tokens)
  kept = np.unpackbits(allowed.view(np.uint8), axis=1, count=spec.grid**2)
  kept = kept.view(bool)  # (B, N)
  if spec.keep == 'random':
    kept = _random_subset(rng, kept, spec.context_tokens)
  return Masks(
    context=_padded_indices(kept, length, spec.context_tokens),
    context_length=length,
    target=_block_indices(targets, target_hw, spec.grid, spec.target_tokens),
    target_length=np.full(batch_size, math.prod(target_hw), np.int32),
    uncut_length=uncut,
    overlaps=overlaps,
  )


def _positions(
  rng: np.random.Generator, spec: MaskSpec, size: tuple[int, int], *shape: int
) -> np.ndarray:
  """Top-left patches of blocks of that size, uniform within the bounds."""
  reach = int(spec.bounds == 'full')  # the reference's end is exclusive
  ends = [spec.grid - side + reach for side in size]
  corners = rng.integers(0, ends, (*shape, 2))
  return corners[..., 0] * spec.grid + corners[..., 1]


def _block_offsets(size: tuple[int, int], grid: int) -> np.ndarray:
  """Patches of a block of that size, counted from its top-left patch."""
  height, width = (np.arange(side, dtype=np.int32) for side in size)
  return np.add.outer(height * grid, width).ravel()


@functools.lru_cache(maxsize=64)
def _block_bits(size: tuple[int, int], grid: int) -> np.ndarray:
  """Blocks by their top-left patch, one bit per patch: `(corners, words)`.

  Bits make drawing fast: a set of patches of a 16x16 grid is four words. A
  table has 5 kB there and 1.2 MB on 64x64; about ten are in use.
  """
  offsets = _block_offsets(size, grid)
  # Up to the block in the bottom right corner. Some of these stick out on the
  # right; nobody draws them.
  corners = np.arange(grid * grid - offsets[-1])[:, None]
  inside = np.zeros((len(corners), 64 * math.ceil(grid * grid / 64)), bool)
  inside[corners, corners + offsets] = True
  return np.packbits(inside, axis=1).view(np.uint64)


def _outside(
  contexts: np.ndarray, target_bits: np.ndarray, targets: np.ndarray
) -> np.ndarray:
  """The patches of contexts `(B, words)` that no target `(B, M)` covers."""
  for target in targets.T:
    contexts = contexts & ~target_bits[target]
  return contexts


def _count(bits: np.ndarray) -> np.ndarray:
  """Sizes `(B,)` of sets of patches `(B, words)`."""
  return np.bitwise_count(bits).sum(1, dtype=np.int32)


def _block_indices(
  corners: np.ndarray, size: tuple[int, int], grid: int, length: int
) -> np.ndarray:
  """Patch numbers of blocks, `(B, M, length)` int32, padded with 0."""
  offsets = _block_offsets(size, grid)
  indices = np.zeros((*corners.shape, length), np.int32)
  first = corners.astype(np.int32)[..., None]
  np.add(first, offsets, out=indices[..., : offsets.size])
  return indices


def _padded_indices(
  kept: np.ndarray, lengths: np.ndarray, length: int
) -> np.ndarray:
  """The first `lengths` true positions per row, padded with 0 to `length`."""
  batch, patches = kept.shape
  first = patches * np.arange(batch, dtype=np.int32)
  found = np.flatnonzero(kept).astype(np.int32)
  rank = np.arange(length)
  which = found.searchsorted(first)[:, None] + rank
  indices = found.take(which, mode='clip')  # what is beyond becomes padding
  indices -= first[:, None]
  indices[rank >= lengths[:, None]] = 0
  return indices


def _random_subset(
  rng: np.random.Generator, allowed: np.ndarray, length: int
) -> np.ndarray:
  """Keeps `length` true positions per row, chosen uniformly; or all of them.

  Equal keys leave one more, in one of about 40 million rows.
  """
  found = np.flatnonzero(allowed)
  keys = np.full(allowed.shape, 2**32 - 1, np.uint32)
  keys.reshape(-1)[found] = rng.integers(0, 2**32, found.size, np.uint32)
  index = min(length, allowed.shape[1]) - 1
  bound = np.partition(keys, index, axis=1)[:, index : index + 1]
  return allowed & (keys <= bound)
