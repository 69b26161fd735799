"""Masks under reference bounds have the reference's statistics.

Every test gives a p-value. Seeds are fixed, so a pass stays a pass; the level
only says how often a correct sampler with another random stream would have to
try another seed: some 70 p-values below give 0.7 % in all.

Images of a batch share their block sizes, so they are not independent draws.
A test therefore compares batches of one image, or batches as a whole, or
images of one block size, whose positions are all drawn apart.
"""

import cases
import numpy as np
import pytest
from mask_cases import GEOMETRIES, RECIPE, make_spec
from scipy import stats

from ijepa_jax.data import masks

_LEVEL = 1e-4
_SINGLE = 10_000  # batches of one image
_BATCHES = 1200  # of as many images as the reference's
_IMAGES = 20_000  # of one block size


@pytest.fixture(scope='module', params=GEOMETRIES)
def geometry(request):
  return request.param


@pytest.fixture(scope='module')
def golden(geometry):
  return cases.section(cases.golden('masks'), geometry)


@pytest.fixture(scope='module')
def spec(geometry):
  return make_spec(GEOMETRIES[geometry])


@pytest.fixture(scope='module')
def single(spec):
  """Many independent images."""
  return [masks.sample_masks(spec, 0, step, 1) for step in range(_SINGLE)]


def samples(counts):
  """A histogram as the values it was made of."""
  return np.repeat(np.arange(len(counts)), counts)


# --- Block sizes -----------------------------------------------------------


def size_of(u, grid):
  return masks.block_size(
    grid, RECIPE['target_scale'], RECIPE['target_aspect'], u, 'reference'
  )


def test_block_sizes_of_the_reference_number_by_number(golden, spec):
  ours = [
    (
      *size_of(target_u, spec.grid),
      *masks.block_size(
        spec.grid, RECIPE['context_scale'], (1.0, 1.0), context_u, 'reference'
      ),
    )
    for target_u, context_u in golden['u'].astype(float)
  ]
  np.testing.assert_array_equal(ours, golden['height_width'])


def test_share_of_each_target_size(golden, spec, single):
  ours = dict.fromkeys(map(tuple, golden['size_counts'][:, :2].tolist()), 0)
  for drawn in single:
    block = drawn.target[0, 0, : drawn.target_length[0]]
    rows, columns = np.divmod(block, spec.grid)
    # A size that the reference never drew is a KeyError.
    ours[int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1] += 1
  table = [list(ours.values()), golden['size_counts'][:, 2].tolist()]
  assert stats.chi2_contingency(table).pvalue > _LEVEL


# --- Context patches before the cut ----------------------------------------


def test_context_patches_of_one_image(golden, single):
  ours = np.array([drawn.uncut_length[0] for drawn in single])
  mean, deviation, *percentiles = golden['uncut_statistics']
  # Of 20,000 batches of one image. What a mean, a standard deviation and a
  # percentile of about normal values vary by (the latter from the density),
  # four times; and half a patch, because percentiles are whole numbers.
  unit = deviation * np.sqrt(1 / _SINGLE + 1 / 20_000)
  assert ours.mean() == pytest.approx(mean, abs=4 * unit)
  assert ours.std() == pytest.approx(deviation, abs=4 * unit / np.sqrt(2))
  ranks = np.array([1, 5, 25, 50, 75, 95, 99])
  q = ranks / 100
  spread = np.sqrt(q * (1 - q)) / stats.norm.pdf(stats.norm.ppf(q))
  off = np.abs(np.percentile(ours, ranks) - percentiles)
  assert (off <= 4 * unit * spread + 0.5).all()


def test_context_patches_given_the_block_sizes(golden, spec):
  """Each pair of sizes on its own: all images are independent draws."""
  sizes, which = np.unique(golden['height_width'], axis=0, return_index=True)
  for size, row, theirs in zip(sizes, which, golden['uncut_counts']):
    fixed = only_size(spec, *golden['u'][row].astype(float))
    drawn = masks.sample_masks(fixed, 0, int(row), _IMAGES)
    assert drawn.target_length[0] == size[0] * size[1]
    # With ties, as here, the test is on the safe side.
    result = stats.ks_2samp(drawn.uncut_length, samples(theirs), method='asymp')
    assert result.pvalue > _LEVEL, size


def only_size(spec, target_u, context_u):
  """The spec whose sizes are always those of these random numbers."""

  def fixed(bounds, u):
    return (bounds[0] + u * (bounds[1] - bounds[0]),) * 2

  return make_spec(
    spec.grid,
    target_scale=fixed(RECIPE['target_scale'], target_u),
    target_aspect=fixed(RECIPE['target_aspect'], target_u),
    context_scale=fixed(RECIPE['context_scale'], context_u),
  )


# --- Where blocks are ------------------------------------------------------


def test_targets_are_anywhere_alike(golden, spec):
  fixed = only_size(spec, *golden['u'][0].astype(float))
  drawn = masks.sample_masks(fixed, 0, 0, _IMAGES)
  height, width = golden['height_width'][0, :2].astype(int)
  # The reference's ends are exclusive: [0, grid - height), [0, grid - width).
  reachable = np.add.outer(
    spec.grid * np.arange(spec.grid - height), np.arange(spec.grid - width)
  )
  for target in range(spec.num_targets):
    corners = drawn.target[:, target, 0]
    counts = np.bincount(corners, minlength=spec.grid**2)
    assert counts[reachable].sum() == _IMAGES
    result = stats.chisquare(counts[reachable].ravel())
    assert result.pvalue > _LEVEL, target


@pytest.fixture(scope='module')
def batches(golden, spec):
  """Batches of the reference's size, each cut to its shortest context.

  Returns:
    The share of images, per batch and patch, that have the patch in the
    context before and after the cut and in a target; and lengths after it.
  """
  patches, size = spec.grid**2, int(golden['batch'])
  maps = np.zeros((3, _BATCHES, patches))
  lengths = np.zeros(_BATCHES, int)
  for step in range(_BATCHES):
    drawn = masks.sample_masks(spec, 0, step, size)
    lengths[step] = drawn.uncut_length.min()
    valid = np.arange(patches) < drawn.uncut_length[:, None]
    targets = drawn.target[..., : drawn.target_length[0]]
    for i, indices in enumerate(
      (drawn.context[valid], drawn.context[:, : lengths[step]], targets)
    ):
      maps[i, step] = np.bincount(indices.ravel(), minlength=patches) / size
  maps[2] /= spec.num_targets
  return *maps, lengths


def same_mean(ours, theirs, count):
  """p-value of Hotelling's test of batches `(n, P)` against a mean `(P,)`.

  Args:
    ours: one row per batch. Patches of one image go together, and images of
      one batch share their block size: all in the covariance of the rows.
    theirs: mean of the reference's batches.
    count: how many those were.
  """
  n = len(ours)
  values, vectors = np.linalg.eigh(np.cov(ours.T))
  # Without what no batch varies in, as patches that are out of reach.
  varied = values > 1e-4 * values[-1]
  scores = vectors[:, varied].T @ (ours.mean(0) - theirs)
  t2 = (scores**2 / values[varied]).sum() / (1 / n + 1 / count)
  rank = int(varied.sum())
  return stats.f.sf(t2 * (n - rank) / (rank * (n - 1)), rank, n - rank)


@pytest.mark.parametrize(
  ('which', 'name'),
  [(0, 'freq_ctx_raw'), (1, 'freq_ctx_trunc'), (2, 'freq_tgt_per_block')],
)
def test_how_often_each_patch_is_in_context_and_targets(
  golden, batches, which, name
):
  ours, theirs = batches[which], golden[name].ravel()
  # A patch that no batch of ours has is left out of the test below.
  if name != 'freq_ctx_trunc':  # where the last rows are too rare to ask
    np.testing.assert_array_equal(ours.any(0), theirs > 0)
  assert same_mean(ours, theirs, 2000) > _LEVEL


# --- The cut ---------------------------------------------------------------


def test_length_after_the_cut_of_the_reference(golden, geometry, batches):
  lengths, theirs = batches[-1], samples(golden['cut_counts'])
  assert stats.ks_2samp(lengths, theirs, method='asymp').pvalue > _LEVEL
  if geometry == '224_14':
    assert golden['batch'] == 128
    assert lengths.mean() == pytest.approx(68.6, abs=1.0)


def test_default_number_of_context_tokens_is_the_mean_cut():
  assert masks.default_context_tokens(make_spec(16)) == 70
  # Does not depend on a number of tokens that was set.
  assert masks.default_context_tokens(make_spec(16, context_tokens=9)) == 70


@pytest.mark.parametrize(
  ('geometry', 'tokens'),
  [('224_14', 54), ('224_16', 40), ('448_16', 154), ('96_8', 30)],
)
def test_default_number_of_target_tokens(geometry, tokens):
  assert make_spec(GEOMETRIES[geometry]).target_tokens == tokens
