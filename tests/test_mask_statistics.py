"""Masks under reference bounds have the reference's statistics."""

import cases
import numpy as np
import pytest
from mask_cases import GEOMETRIES, dense, dense_context, dense_target, make_spec

from ijepa_jax.data import masks


@pytest.fixture(scope='module')
def golden():
  return cases.golden('masks')


@pytest.mark.parametrize('geometry', GEOMETRIES)
def test_block_sizes_of_the_reference_number_by_number(golden, geometry):
  grid = GEOMETRIES[geometry]
  u = golden[f'{geometry}/u'].astype(float)
  ours = [
    (
      *masks.block_size(grid, (0.15, 0.2), (0.75, 1.5), target_u, 'reference'),
      *masks.block_size(grid, (0.85, 1.0), (1.0, 1.0), context_u, 'reference'),
    )
    for target_u, context_u in u
  ]
  np.testing.assert_array_equal(ours, golden[f'{geometry}/height_width'])


@pytest.fixture(scope='module', params=GEOMETRIES)
def sample(request):
  """Many small batches of a geometry: name, spec, and all masks."""
  spec = make_spec(GEOMETRIES[request.param])
  drawn = [masks.sample_masks(spec, 0, step, 4) for step in range(3000)]
  return request.param, spec, drawn


# Shares of (height, width), and mean and standard deviation of the context's
# patches before the cut (golden README and statistics.json, 20,000 batches).
STATISTICS = {
  '224_14': (
    {'5x7': 0.047, '6x6': 0.016, '6x7': 0.278, '7x6': 0.291}
    | {'8x6': 0.295, '9x6': 0.073},
    110.0,
    18.2,
  ),
  '224_16': (
    {'5x6': 0.265, '6x5': 0.126, '6x6': 0.219, '7x5': 0.363, '8x5': 0.027},
    81.7,
    13.7,
  ),
  '448_16': (
    {'9x12': 0.019, '10x12': 0.171, '11x11': 0.047, '11x12': 0.112}
    | {'12x11': 0.172, '13x11': 0.168, '14x10': 0.065, '14x11': 0.104}
    | {'15x10': 0.142},
    359.9,
    58.8,
  ),
  '96_8': (
    {'4x5': 0.200, '5x5': 0.412, '6x4': 0.259, '6x5': 0.130},
    57.5,
    10.3,
  ),
}


def test_share_of_each_target_size(sample):
  name, spec, drawn = sample
  counts = {}
  for masks_ in drawn:
    block = masks_.target[0, 0, : masks_.target_length[0]]
    rows, columns = np.divmod(block, spec.grid)
    size = f'{np.ptp(rows) + 1}x{np.ptp(columns) + 1}'
    counts[size] = counts.get(size, 0) + 1
  shares = {size: count / len(drawn) for size, count in counts.items()}
  # Four standard deviations of a share of one half.
  assert shares == pytest.approx(STATISTICS[name][0], abs=0.036)


def test_context_patches_before_the_cut(sample):
  name, _, drawn = sample
  _, mean, deviation = STATISTICS[name]
  lengths = np.concatenate([masks_.uncut_length for masks_ in drawn])
  assert lengths.mean() == pytest.approx(mean, rel=0.01)
  assert lengths.std() == pytest.approx(deviation, rel=0.03)


def test_how_often_each_patch_is_in_context_and_targets(sample, golden):
  name, spec, drawn = sample
  shape = (spec.grid, spec.grid)
  context = np.mean([dense_context(x, spec).mean(0) for x in drawn], 0)
  target = np.mean([dense_target(x, spec).mean((0, 1)) for x in drawn], 0)
  for ours, theirs in (
    (context, golden[f'{name}/freq_ctx_raw']),
    (target, golden[f'{name}/freq_tgt_per_block']),
  ):
    assert np.abs(ours.reshape(shape) - theirs).max() < 0.025


@pytest.fixture(scope='module')
def cut():
  """224/14, cut to the shortest of each batch of 128, as the reference does.

  Returns:
    Lengths after the cut, and how often each patch is left.
  """
  spec = make_spec(16)
  lengths, kept = [], np.zeros(256)
  for step in range(600):
    drawn = masks.sample_masks(spec, 0, step, 128)
    lengths.append(drawn.uncut_length.min())
    kept += dense(drawn.context[:, : lengths[-1]], lengths[-1], 256).mean(0)
  return np.array(lengths), kept.reshape(16, 16) / 600


def test_length_after_the_cut_of_the_reference(cut):
  assert cut[0].mean() == pytest.approx(68.6, abs=1.0)
  assert cut[0].std() == pytest.approx(10.1, abs=1.0)


def test_patches_after_the_cut_of_the_reference(cut, golden):
  theirs = golden['224_14/freq_ctx_trunc']
  assert np.abs(cut[1] - theirs).max() < 0.04


def test_default_number_of_context_tokens_is_the_mean_cut(cut):
  assert masks.default_context_tokens(make_spec(16)) == 70
  # Does not depend on a number of tokens that was set.
  assert masks.default_context_tokens(make_spec(16, context_tokens=9)) == 70


@pytest.mark.parametrize(
  ('geometry', 'tokens'),
  [('224_14', 54), ('224_16', 40), ('448_16', 154), ('96_8', 30)],
)
def test_default_number_of_target_tokens(geometry, tokens):
  assert make_spec(GEOMETRIES[geometry]).target_tokens == tokens
