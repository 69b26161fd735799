"""Heads and figures of `evaluate` against scikit-learn, scipy, plain code."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from ijepa_jax import errors
from ijepa_jax.evaluation import (
  attentive,
  batches,
  corruptions,
  intervals,
  labels,
  logistic,
  moments,
  neighbours,
  sweep,
)
from ijepa_jax.evaluation.dense import fitting
from ijepa_jax.evaluation.tasks import choosing, linear


def clusters(n=600, width=12, classes=5, seed=0):
  """Features with a class each, far from separable."""
  rng = np.random.default_rng(seed)
  y = rng.integers(0, classes, n)
  centres = rng.normal(size=(classes, width))
  x = centres[y] + 1.5 * rng.normal(size=(n, width))
  return x.astype(np.float32), y


def test_neighbours_vote_as_scikit_learns_do(monkeypatch):
  # Blocks that do not divide the rows.
  monkeypatch.setattr(neighbours, '_TRAIN_ROWS', 128)
  monkeypatch.setattr(neighbours, '_TEST_ROWS', 96)
  x, y = clusters()
  train, test = x[:400], x[400:]
  ours = neighbours.predict(
    train, {'a': y[:400] + 7}, test, (1, 10, 20), temperature=0.07
  )
  for k in (1, 10, 20):
    theirs = KNeighborsClassifier(
      k,
      metric='cosine',
      algorithm='brute',
      weights=lambda distance: np.exp((1 - distance) / 0.07),
    ).fit(train, y[:400] + 7)
    np.testing.assert_array_equal(ours['a'][k], theirs.predict(test))


def test_more_neighbours_than_images_are_all_of_them():
  x, y = clusters(40)
  found = neighbours.predict(x, {'a': y}, x[:5], (40, 500), temperature=0.07)
  np.testing.assert_array_equal(found['a'][40], found['a'][500])


@pytest.fixture
def blocks(monkeypatch):
  """Blocks of 179 rows, which do not divide the 600."""
  monkeypatch.setattr(logistic, '_LOGITS', 179 * 2 * 5)


@pytest.mark.usefixtures('blocks')
def test_logistic_regression_agrees_with_scikit_learns():
  x, y = clusters()
  codes = labels.encode({'a': y, 'b': (y > 1).astype(int)})
  used = np.arange(len(x)) % 10 != 3
  regression = logistic.Regression(x, codes.codes, codes.mask())
  start = None
  for cs in ((1e-3, 1e-2), (1e-1, 1e-1), (1.0, 3e-1)):
    start, _ = regression.fit(used, np.array(cs), start, tolerance=1e-6)
    for label, c in enumerate(cs):
      # With two classes theirs has one row of weights, w = w1 - w0, whose
      # penalty is twice that of the two rows -w/2 and w/2.
      two = 2.0 if label else 1.0
      theirs = LogisticRegression(C=two * c, tol=1e-8, max_iter=5000)
      theirs.fit(x[used], codes.codes[used, label])
      logits = x @ start['kernel'][label] + start['bias'][label]
      ours = jax.nn.softmax(logits + codes.mask()[label])
      wanted = theirs.predict_proba(x)
      np.testing.assert_allclose(ours[:, : wanted.shape[1]], wanted, atol=1e-3)


@pytest.mark.usefixtures('blocks')
def test_features_that_nearly_depend_on_each_other_take_few_steps():
  # Deviations from 1 to 1/1000 along random directions, and a weak penalty.
  x, y = clusters()
  turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))
  x = (x * np.logspace(0, -3, 12) @ turn).astype(np.float32)
  codes = labels.encode({'a': y, 'b': y})
  params, steps = logistic.Regression(x, codes.codes, codes.mask()).fit(
    np.ones(len(x), bool), np.array([100.0, 1.0])
  )
  assert steps.max() <= 20  # the limit, 300, in the features' own coordinates
  theirs = LogisticRegression(C=100.0, tol=1e-8, solver='newton-cholesky')
  theirs.fit(x, y)
  ours = jax.nn.softmax(x @ params['kernel'][0] + params['bias'][0])
  np.testing.assert_allclose(ours, theirs.predict_proba(x), atol=1e-2)


def test_wilsons_interval_is_scipys():
  for correct, total in ((0, 10), (3, 10), (10, 10), (977, 2000)):
    theirs = stats.binomtest(correct, total).proportion_ci(method='wilson')
    np.testing.assert_allclose(
      intervals.wilson(correct, total), (theirs.low, theirs.high), atol=1e-12
    )


def test_bootstrap_of_a_mean_is_near_its_standard_error():
  x = np.random.default_rng(0).normal(size=400)
  (found,) = intervals.bootstrap(
    lambda rows: {'mean': x[rows].mean()}, 400, seed=1
  ).values()
  low, high = found
  wanted = 2 * 1.96 * x.std() / np.sqrt(400)
  assert high - low == pytest.approx(wanted, rel=0.1)


def regression(lrs):
  """Heads that fit a line by SGD, one for each learning rate."""
  return sweep.Group(
    init=lambda rng: {'w': rng.normal(size=3)},
    loss=lambda p, hyper, b: jnp.mean((b['x'] @ p['w'] - b['y']) ** 2),
    optimiser=lambda hyper: optax.sgd(hyper['lr'], momentum=0.9),
    hyper={'lr': np.asarray(lrs, np.float32)},
  )


def line_chunks(length, steps=10):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(steps, 8, 3)).astype(np.float32)
  y = x @ np.array([1.0, -2.0, 0.5], np.float32)
  for start in range(0, steps, length):
    part = slice(start, start + length)
    used = len(x[part])
    filling = length - used
    yield sweep.Chunk(
      {
        'x': np.pad(x[part], ((0, filling), (0, 0), (0, 0))),
        'y': np.pad(y[part], ((0, filling), (0, 0))),
      },
      used,
    )


def test_heads_side_by_side_learn_what_each_learns_alone():
  factors = sweep.cosine(10)
  lrs = (1e-3, 1e-2, 1e-1)
  (together,) = sweep.fit([regression(lrs)], line_chunks(5), factors, seed=0)
  for head, lr in enumerate(lrs):
    w = np.random.default_rng(0).normal(size=3).astype(np.float32)
    velocity = jnp.zeros(3)
    for step, chunk in enumerate(line_chunks(1)):
      x, y = chunk.batches['x'][0], chunk.batches['y'][0]
      gradient = jax.grad(lambda w, x=x, y=y: jnp.mean((x @ w - y) ** 2))(w)
      velocity = 0.9 * velocity + gradient  # as PyTorch's SGD
      w = w - lr * factors[step] * velocity
    np.testing.assert_allclose(together['w'][head], w, rtol=2e-5)


def test_how_batches_are_cut_into_chunks_changes_nothing():
  factors = sweep.staircase(2, 5, every=1)
  ends = [
    sweep.fit([regression([0.1])], line_chunks(length), factors, seed=0)[0]['w']
    for length in (10, 4, 4)
  ]
  np.testing.assert_array_equal(ends[1], ends[2])
  np.testing.assert_allclose(ends[0], ends[1], rtol=1e-6)


def test_a_diverged_head_is_told_from_the_others():
  (params,) = sweep.fit(
    [regression([1e-2, 1e30])], line_chunks(10), sweep.cosine(10), seed=0
  )
  np.testing.assert_array_equal(sweep.finite(params), [True, False])


def test_the_best_head_is_one_that_has_not_diverged():
  assert sweep.best([None, 0.0, 0.5, 0.5]) == 2
  with pytest.raises(errors.UserError, match='all 2 heads'):
    sweep.best([None, None])


def test_a_diverged_head_of_a_dense_sweep_is_not_chosen():
  stacked = {'w': np.array([[np.nan], [1.0], [2.0]], np.float32)}
  fitted = fitting.best(
    'linear',
    stacked,
    [(10.0, 0.0), (1.0, 0.0), (0.1, 0.0)],
    {},
    lambda params: float(params['w'][0]),
  )
  assert fitted.params['w'] == [2.0]
  assert [row['held out'] for row in fitted.details['sweep']] == [None, 1, 2]


class FourImages:
  """A context with a label 'odd' of four test images."""

  def labels(self, split):
    return {'odd': np.array([0, 1, 0, 1])}


def test_heads_are_chosen_on_held_out_images_and_measured_on_test():
  """The head that is better on test is the worse one there."""
  codes = labels.encode({'odd': np.array([0, 1, 0, 1])})
  # Features are one-hot: 0, 1 of train, 2, 3 of test; kernels say what for.
  right, wrong = np.eye(2), np.eye(2)[::-1]
  kernels = [
    np.concatenate([wrong, right]),
    np.concatenate([right, wrong]),
    np.full((4, 2), np.nan),
  ]
  candidates = [
    choosing.Candidate(
      name,
      dataclasses.replace(
        regression([1.0]), hyper=sweep.grid([1.0], [0.0], labels=1)
      ),
      {'kernel': kernel[None].astype(np.float32)},
      lambda params, x: x @ params['kernel'],
    )
    for name, kernel in zip('abc', kernels)
  ]
  rows = np.eye(4, dtype=np.float32)
  (score,) = choosing.choose(
    FourImages(),
    codes,
    candidates,
    train=rows[[0, 1, 0, 1]],
    held=np.arange(4),
    test=rows[[2, 3, 2, 3]],
    details={},
  )
  assert score.details['chosen']['inputs'] == 'b'
  assert (score.details['held-out top1'], score.value) == (1.0, 0.0)
  sweep_of = [row['held-out top1'] for row in score.details['sweep']]
  assert sweep_of == [0.0, 1.0, None]
  assert score.details['heads within the interval'] == 1


def test_lars_takes_steps_of_the_size_of_the_kernel():
  rng = np.random.default_rng(0)
  params = {'kernel': rng.normal(size=(3, 2)), 'bias': rng.normal(size=2)}
  lr, decay = 6.4, 5e-4
  optimiser = linear.PRESETS['paper'].optimiser(
    {'lr': lr, 'weight_decay': decay}
  )
  ours = jax.tree.map(jnp.float32, params)
  moments = optimiser.init(ours)
  velocity = jax.tree.map(np.zeros_like, params)
  for _ in range(4):
    grads = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
    updates, moments = optimiser.update(
      jax.tree.map(jnp.float32, grads), moments, ours
    )
    ours = optax.apply_updates(ours, updates)
    for name, w in params.items():
      g = grads[name]
      if name == 'kernel':
        g = g + decay * w
        g *= 0.001 * np.linalg.norm(w) / np.linalg.norm(g)
      velocity[name] = 0.9 * velocity[name] + g
      params[name] = w - lr * velocity[name]
  for name, w in params.items():
    np.testing.assert_allclose(ours[name], w, rtol=1e-4)


@pytest.mark.parametrize(('preset', 'heads'), [('paper', 24), ('dinov2', 52)])
def test_protocols_have_as_many_heads_as_they_say(preset, heads):
  x, y = clusters(n=20)
  codes = labels.encode({'a': y})
  statistics = moments.of(np.stack([x] * 4, 1), np.arange(len(x)))
  groups = [
    linear.group(
      linear.PRESETS[preset],
      batches.Plan(8, 2, 1),
      linear.Inputs(layers, batch_norm),
      codes,
      statistics,
    )
    for layers in (1, 4)
    for batch_norm in (False, True)
  ]
  assert sum(map(len, groups)) == heads


def test_an_epoch_sees_each_image_once_and_labels_stay_with_them():
  x = np.arange(20, dtype=np.float32)[:, None]
  plan = batches.plan(16, batch_size=1024, least_per_epoch=4, epochs=2)
  assert (plan.batch_size, plan.per_epoch) == (4, 4)
  seen = []
  for chunk in batches.chunks(
    lambda epoch: x,
    np.arange(20)[:, None],
    np.arange(4, 20),
    plan,
    seed=0,
    advance=lambda count: None,
  ):
    np.testing.assert_array_equal(chunk.batches['x'], chunk.batches['y'])
    seen.append(chunk.batches['y'].ravel())
  assert [sorted(epoch) for epoch in seen] == [list(range(4, 20))] * 2
  assert not np.array_equal(*seen)


def test_moments_are_numpys_and_leave_constants_out():
  x = np.random.default_rng(0).normal(3, 2, size=(50, 2, 4)).astype(np.float32)
  x[:, 1, 2] = 5.0
  found = moments.of(x, np.arange(10, 50))
  np.testing.assert_allclose(found.mean, x[10:].mean(0), rtol=1e-5)
  assert found.scale[1, 2] == 0.0
  np.testing.assert_allclose(found.scale[0], 1 / x[10:, 0].std(0), rtol=1e-5)


def test_the_folded_attentive_probe_is_the_plain_one():
  width, heads = 12, 3

  rng = np.random.default_rng(0)
  start = attentive.init(rng, width, 4)
  assert np.abs(start['q']['kernel']).max() <= 2 * attentive._STD
  moved = jax.tree.map(
    lambda leaf: np.float32(leaf + 0.3 * rng.normal(size=leaf.shape)), start
  )
  tokens = rng.normal(size=(2, 5, width)).astype(np.float32)

  @jax.jit
  def both(params, tokens):
    def linear(name, x):
      return x @ params[name]['kernel'] + params[name]['bias']

    def norm(name, x):
      held = params[name]
      return attentive.normalised(x) * held['scale'] + held['bias']

    x = norm('norm1', tokens)
    q, k, v = (
      linear(name, value).reshape(*value.shape[:-1], heads, -1)
      for name, value in (('q', params['query']), ('k', x), ('v', x))
    )
    scores = jnp.einsum('he,bnhe->bhn', q, k) / np.sqrt(width / heads)
    weights = jax.nn.softmax(scores, -1)
    out = jnp.einsum('bhn,bnhe->bhe', weights, v).reshape(2, width)
    out = params['query'] + linear('proj', out)
    hidden = jax.nn.gelu(linear('fc1', norm('norm2', out)), approximate=False)
    plain = linear('head', out + linear('fc2', hidden))
    return plain, attentive.logits(params, attentive.normalised(tokens), heads)

  plain, folded = both(moved, tokens)
  np.testing.assert_allclose(folded, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', corruptions.NAMES)
def test_corruptions_grow_with_severity_and_repeat(name):
  rng = np.random.default_rng(0)
  smooth = np.linspace(30, 200, 48)[:, None, None] + rng.normal(
    0, 12, (48, 48, 3)
  )
  image = smooth.clip(0, 255).astype(np.uint8)
  changed = [
    corruptions.Corruption(name, severity, seed=0)(image, 3)
    for severity in corruptions.SEVERITIES
  ]
  assert all(x.dtype == np.uint8 and x.shape == image.shape for x in changed)
  distance = [np.abs(x.astype(float) - image).mean() for x in changed]
  assert distance[0] > 0
  assert distance == sorted(distance)
  again = corruptions.Corruption(name, 5, seed=0)(image, 3)
  np.testing.assert_array_equal(again, changed[-1])


def test_labels_of_several_sizes_stand_side_by_side():
  codes = labels.encode({'a': np.array([5, 9, 5]), 'b': np.array([0, 1, 2])})
  assert codes.width == 3
  np.testing.assert_array_equal(codes.codes, [[0, 0], [1, 1], [0, 2]])
  logits = jnp.array([[0.0, 0.0, 9.0]])
  loss = labels.cross_entropy(logits, codes.codes[:1], codes.mask(), 0)
  assert float(loss) == pytest.approx(np.log(2))  # the third is no class of a


def test_held_out_rows_are_no_others():
  fitted, held = labels.hold_out(100, seed=0)
  assert len(held) == 10
  assert sorted([*fitted, *held]) == list(range(100))
