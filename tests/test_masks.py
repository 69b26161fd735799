"""Masks: what holds for every draw, and the two modes."""

import dataclasses
import functools
import zlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from mask_cases import (
  dense_context,
  dense_target,
  make_spec,
)

from ijepa_jax import errors
from ijepa_jax.data import masks


@st.composite
def specs(draw):
  grid = draw(st.integers(6, 18))
  smallest = draw(st.floats(0.1, 0.25))
  aspect = draw(st.floats(0.5, 1.5))
  context = draw(st.floats(0.5, 1.0))
  return make_spec(
    grid,
    context_tokens=draw(st.integers(1, grid**2)),
    min_keep=draw(st.integers(0, 12)),
    num_targets=draw(st.integers(1, 5)),
    target_scale=(smallest, draw(st.floats(smallest, 0.3))),
    target_aspect=(aspect, draw(st.floats(aspect, 2.0))),
    context_scale=(context, draw(st.floats(context, 1.0))),
    keep=draw(st.sampled_from(['first', 'random'])),
    bounds=draw(st.sampled_from(['reference', 'full'])),
  )


@st.composite
def draws(draw):
  """A spec and masks of it; what cannot be satisfied is left out."""
  spec = draw(specs())
  seed, step = draw(st.integers(0, 2**40)), draw(st.integers(0, 2**31))
  try:
    drawn = masks.sample_masks(spec, seed, step, draw(st.integers(1, 9)))
  except errors.UserError:
    hypothesis.reject()
  return spec, drawn


def every_draw(test):
  return hypothesis.settings(max_examples=40)(hypothesis.given(draws())(test))


@every_draw
def test_shapes_and_types(drawn):
  spec, drawn = drawn
  size = len(drawn.context)
  assert drawn.context.shape == (size, spec.context_tokens)
  assert drawn.target.shape == (size, spec.num_targets, spec.target_tokens)
  arrays = dataclasses.asdict(drawn)
  assert arrays.pop('overlaps').dtype == bool
  assert {x.dtype for x in arrays.values()} == {np.dtype('int32')}


@every_draw
def test_targets_are_blocks_of_one_possible_size_within_the_bounds(drawn):
  spec, drawn = drawn
  sizes = masks.block_sizes(
    spec.grid, spec.target_scale, spec.target_aspect, spec.bounds
  )
  limit = spec.grid if spec.bounds == 'full' else spec.grid - 1
  length = drawn.target_length[0]
  assert (drawn.target_length == length).all()
  rows, columns = np.divmod(drawn.target[..., :length], spec.grid)
  height, width = np.ptp(rows, axis=-1) + 1, np.ptp(columns, axis=-1) + 1
  seen = {(int(h), int(w)) for h, w in zip(height.flat, width.flat)}
  assert len(seen) == 1
  assert seen <= sizes
  # As many patches as the bounding box, none twice: the whole block.
  assert (height * width == length).all()
  assert dense_target(drawn, spec).sum(-1).min() == length
  assert rows.min() >= 0
  assert max(rows.max(), columns.max()) < limit


@every_draw
def test_contexts_are_ascending_and_keep_enough(drawn):
  spec, drawn = drawn
  assert (drawn.uncut_length > spec.min_keep).all()
  kept = np.minimum(drawn.uncut_length, spec.context_tokens)
  np.testing.assert_array_equal(drawn.context_length, kept)
  limit = spec.grid if spec.bounds == 'full' else spec.grid - 1
  for row, length in zip(drawn.context, drawn.context_length):
    assert (np.diff(row[:length]) > 0).all()
    assert max(np.divmod(row[:length], spec.grid)[0]) < limit
    assert max(np.divmod(row[:length], spec.grid)[1]) < limit


@every_draw
def test_padding_is_zero(drawn):
  _, drawn = drawn
  for indices, lengths in (
    (drawn.context, drawn.context_length[:, None]),
    (drawn.target, drawn.target_length[:, None, None]),
  ):
    padding = np.arange(indices.shape[-1]) >= lengths
    assert not indices[np.broadcast_to(padding, indices.shape)].any()


@every_draw
def test_context_and_targets_share_no_patch_unless_said(drawn):
  spec, drawn = drawn
  targets = dense_target(drawn, spec).any(1)
  shared = (dense_context(drawn, spec) & targets).any(1)
  assert not (shared & ~drawn.overlaps).any()
  if spec.bounds == 'full':
    assert not drawn.overlaps.any()


# --- The random stream -----------------------------------------------------


def same(a, b):
  pairs = zip(
    dataclasses.asdict(a).values(), dataclasses.asdict(b).values(), strict=True
  )
  return all(np.array_equal(x, y) for x, y in pairs)


@hypothesis.settings(max_examples=40)
@hypothesis.given(
  specs(), st.integers(0, 2**40), st.integers(0, 2**31), st.integers(1, 9)
)
def test_the_same_arguments_give_the_same_masks(spec, seed, step, size):
  try:
    first = masks.sample_masks(spec, seed, step, size)
  except errors.UserError:
    hypothesis.reject()
  again = masks.sample_masks(spec, seed, step, size)
  assert same(first, again)
  # Nor does a caller who writes into the masks change those drawn later.
  for array in vars(again).values():
    array[...] = 0
  assert same(first, masks.sample_masks(spec, seed, step, size))


def test_masks_are_a_function_of_seed_and_step():
  draw = functools.partial(masks.sample_masks, make_spec(14))
  assert same(draw(3, 5, 8), draw(3, 5, 8))
  others = draw(4, 5, 8), draw(3, 6, 8), draw(5, 3, 8)
  assert not any(same(draw(3, 5, 8), other) for other in others)


@pytest.mark.parametrize(
  ('keep', 'bounds', 'min_keep', 'crc32'),
  [
    ('first', 'reference', 10, 1796858263),
    ('random', 'reference', 10, 1451074721),
    ('random', 'full', 10, 1489699650),
    ('first', 'reference', 60, 2191025923),
  ],
)
def test_a_run_goes_on_with_the_same_masks_in_later_versions(
  keep, bounds, min_keep, crc32
):
  spec = make_spec(
    12, context_tokens=40, keep=keep, bounds=bounds, min_keep=min_keep
  )
  drawn = masks.sample_masks(spec, seed=1, step=2, batch_size=16)
  checksum = 0
  for array in dataclasses.asdict(drawn).values():
    checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
  assert checksum == crc32


# --- The two modes ---------------------------------------------------------


@pytest.mark.parametrize('keep', ['first', 'random'])
def test_cut_keeps_a_part_of_the_whole_context(keep):
  spec = make_spec(14, keep=keep)
  whole = masks.sample_masks(spec, 0, 0, 64)
  short = dataclasses.replace(spec, context_tokens=60)
  drawn = masks.sample_masks(short, 0, 0, 64)
  assert not (dense_context(drawn, short) & ~dense_context(whole, spec)).any()
  assert (drawn.context_length < whole.context_length).any()
  prefix = np.array_equal(drawn.context, whole.context[:, :60])
  assert prefix == (keep == 'first')


def test_random_keeps_every_part_of_the_context_alike():
  spec = make_spec(14)
  short = dataclasses.replace(spec, context_tokens=40, keep='random')
  expected, kept = np.zeros(10), np.zeros(10)
  for step in range(100):
    whole = masks.sample_masks(spec, 0, step, 64)
    drawn = masks.sample_masks(short, 0, step, 64)
    left = dense_context(drawn, short)
    for image, length in enumerate(whole.context_length):
      tenth = np.arange(length) * 10 // length
      patches = whole.context[image, :length]
      share = drawn.context_length[image] / length
      expected += share * np.bincount(tenth, minlength=10)
      kept += np.bincount(tenth, left[image, patches], minlength=10)
  # 25,600 tokens per tenth: 1 % is two standard deviations or more.
  np.testing.assert_allclose(kept, expected, rtol=0.02)


@pytest.mark.parametrize(('bounds', 'side'), [('reference', 7), ('full', 8)])
def test_largest_block(bounds, side):
  size = masks.block_size(8, (1.0, 1.0), (1.0, 1.0), 0.5, bounds)
  assert size == (side, side)


@hypothesis.settings(max_examples=20)
@hypothesis.given(
  grid=st.integers(6, 28),
  num_targets=st.integers(1, 4),
  smallest=st.floats(0.5, 0.85),
  seed=st.integers(0, 2**40),
)
def test_full_bounds_reach_every_patch(grid, num_targets, smallest, seed):
  spec = make_spec(
    grid,
    bounds='full',
    min_keep=0,
    num_targets=num_targets,
    context_scale=(smallest, 1.0),
  )
  context, target = np.zeros(grid**2, bool), np.zeros(grid**2, bool)
  for step in range(20):
    drawn = masks.sample_masks(spec, seed, step, 500)
    context |= drawn_patches(drawn.context, drawn.context_length[:, None], grid)
    target |= drawn_patches(
      drawn.target, drawn.target_length[:, None, None], grid
    )
  assert context.all()
  assert target.all()


def drawn_patches(indices, lengths, grid):
  """The patches that any row of padded indices has."""
  valid = np.broadcast_to(np.arange(indices.shape[-1]) < lengths, indices.shape)
  return np.bincount(indices[valid], minlength=grid**2) > 0


def test_full_bounds_treat_the_four_corners_alike():
  spec = make_spec(14, bounds='full')
  context = np.zeros(196)
  for step in range(300):
    context += dense_context(masks.sample_masks(spec, 0, step, 8), spec).sum(0)
  corners = context.reshape(14, 14)[np.ix_([0, -1], [0, -1])]
  assert np.ptp(corners) / corners.mean() < 0.2


def test_reference_bounds_never_touch_the_last_row_and_column():
  spec = make_spec(14)
  everything = np.zeros(196)
  for step in range(100):
    drawn = masks.sample_masks(spec, 0, step, 8)
    everything += dense_context(drawn, spec).sum(0)
    everything += dense_target(drawn, spec).sum((0, 1))
  everything = everything.reshape(14, 14)
  assert not everything[-1].any()
  assert not everything[:, -1].any()
  assert everything[:-1, :-1].all()


def test_context_that_finds_no_place_overlaps_the_last_target_first():
  # So much must stay that most images find no context beside all targets.
  spec = make_spec(12, min_keep=75)
  drawn = masks.sample_masks(spec, 0, 0, 500)
  assert drawn.overlaps.mean() > 0.5
  context = dense_context(drawn, spec)[:, None]
  overlapped = (context & dense_target(drawn, spec)).any(2).mean(0)
  assert (np.diff(overlapped) > 0).all()


def test_full_bounds_draw_targets_again_instead():
  spec = make_spec(12, min_keep=75, bounds='full')
  drawn = masks.sample_masks(spec, 0, 0, 50)
  assert (drawn.uncut_length > 75).all()
  targets = dense_target(drawn, spec).any(1)
  assert not (dense_context(drawn, spec) & targets).any()


@pytest.mark.parametrize('bounds', ['reference', 'full'])
def test_context_that_cannot_be_large_enough_is_a_user_error(bounds):
  spec = make_spec(8, min_keep=64, bounds=bounds)
  with pytest.raises(errors.UserError, match='min_keep=64') as caught:
    masks.sample_masks(spec, 0, 0, 2)
  assert '\n' not in str(caught.value)


# --- Lengths of targets ------------------------------------------------------


@hypothesis.settings(max_examples=10, deadline=None)
@hypothesis.given(specs(), st.integers(1, 6))
def test_target_lengths_are_few_rising_and_hold_every_target(spec, count):
  lengths = masks.target_lengths(spec, count)
  assert 1 <= len(lengths) <= count
  assert list(lengths) == sorted(set(lengths))
  assert lengths[-1] == spec.target_tokens
  assert all(length % 2 == 0 for length in lengths[:-1])


def test_more_target_lengths_pad_less():
  spec = make_spec(16, context_tokens=50, min_keep=10)
  steps = range(200)
  sizes = [masks.sample_masks(spec, 0, s, 1).target_length[0] for s in steps]

  def mean(count):
    lengths = masks.target_lengths(spec, count)
    return np.mean([masks.padded_length(lengths, size) for size in sizes])

  assert mean(1) == spec.target_tokens > mean(2) > mean(3) > mean(4)
  assert mean(4) == np.mean([size + size % 2 for size in sizes])


@pytest.mark.parametrize(('size', 'length'), [(1, 4), (4, 4), (5, 8), (8, 8)])
def test_padded_length_is_the_shortest_that_holds(size, length):
  assert masks.padded_length((4, 8), size) == length
