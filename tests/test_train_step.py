"""One step of training: loss, gradients, update, and how it compiles."""

import dataclasses
import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ijepa_jax import optim, train_step

golden_size = cases.golden_size

SCHEDULE = {
  'lr': np.float32(1e-2),
  'weight_decay': np.float32(10),  # enough to see it in one step
  'one_minus_momentum': np.float32(0.25),
}


# --- Loss ------------------------------------------------------------------


@pytest.fixture(scope='module')
def pair():
  """Predictions and targets `(B, M, T, D)`, of which 3 of 5 tokens count."""
  rng = np.random.default_rng(0)
  guess, truth = 2 * rng.normal(size=(2, 4, 2, 5, 6)).astype(np.float32)
  return guess, truth, np.full(4, 3, np.int32)


def loss_of(pair, name):
  guess, truth, length = pair
  learner = train_step.Learner(cases.config({'loss': name}))
  learner.targets = lambda *_: truth
  learner.predictions = lambda *_: guess
  batch = {'target': None, 'target_length': length}
  return learner.loss({}, {}, None, batch)


@pytest.mark.parametrize(
  ('name', 'formula'),
  [
    ('l1', np.abs),
    ('l2', np.square),
    (
      'smooth_l1',
      lambda e: np.where(np.abs(e) < 1, e**2 / 2, np.abs(e) - 0.5),
    ),
  ],
)
def test_loss_is_the_mean_over_valid_tokens_and_channels(pair, name, formula):
  guess, truth, _ = pair
  error = (guess - truth)[:, :, :3]
  ours = loss_of(pair, name)[0]
  assert ours == pytest.approx(formula(error).mean(), rel=1e-6)


def test_health_figures_are_of_valid_tokens(pair):
  guess, truth, _ = (x[:, :, :3] if x.ndim > 1 else x for x in pair)
  health = loss_of(pair, 'l2')[1]
  norms = np.linalg.norm(guess, axis=-1) * np.linalg.norm(truth, axis=-1)
  assert {name: float(x) for name, x in health.items()} == pytest.approx(
    {
      'target_variance': truth.var((0, 1, 2)).mean(),
      'prediction_variance': guess.var((0, 1, 2)).mean(),
      'prediction_target_cosine': ((guess * truth).sum(-1) / norms).mean(),
    },
    rel=1e-5,
  )


def test_images_are_normalised_with_the_statistics_of_imagenet():
  pixels = np.full((1, 2, 2, 3), 51, np.uint8)
  ours = train_step.normalise(pixels)[0, 0, 0]
  theirs = [(0.2 - m) / s for m, s in ((0.485, 0.229), (0.456, 0.224))]
  np.testing.assert_allclose(ours[:2], theirs, rtol=1e-6)


# --- Initialisation --------------------------------------------------------


def test_initial_parameters():
  deviation = 0.05  # not the default: the field must count
  config = cases.config({'model.init_std': deviation})
  state = cases.jit(lambda: train_step.init_state(config))()
  params = state.params
  blocks = params['encoder']['trunk']['blocks']
  for kernel in (
    params['encoder']['patch_embed']['kernel'],
    params['predictor']['proj']['kernel'],
    blocks['qkv']['kernel'],
    blocks['fc2']['kernel'],
  ):
    assert float(kernel.std()) == pytest.approx(deviation, rel=0.05)
    assert abs(float(kernel.mean())) < 0.1 * deviation
  token = float(params['predictor']['mask_token'].std())
  assert token == pytest.approx(deviation, rel=0.5)
  assert not blocks['qkv']['bias'].any()
  assert (blocks['norm1']['scale'] == 1).all()
  assert cases.difference(state.target, params['encoder']) == 0
  assert state.step == 0


# --- Gradients -------------------------------------------------------------


# Compiles in half the time.
SHALLOW = {
  'model.variant': 'shallow',
  'model.unroll': True,
  'predictor.depth': 1,
}


@functools.cache
def accumulated(count):
  """Gradients and metrics of one batch in `count` parts."""
  config = cases.config(SHALLOW | {'batch_size': 8, 'optim.accumulate': count})
  learner = train_step.Learner(config)
  state, batch = cases.state(config), cases.batch(config)
  return cases.jit(learner.gradients)(state, batch)


@pytest.mark.parametrize('count', [2, 4])
def test_accumulation_gives_the_gradient_of_the_batch(count):
  (ours, metrics), (whole, whole_metrics) = accumulated(count), accumulated(1)
  differences = cases.gradient_difference(ours, whole)
  assert max(differences.values()) < 1e-5, differences
  loss = float(whole_metrics['loss'])
  assert metrics['loss'] == pytest.approx(loss, abs=1e-6)


# --- The update ------------------------------------------------------------


@functools.cache
def program(dtype):
  """A whole compiled step with donated state, and its config."""
  changes = SHALLOW | {'model.dtype': dtype, 'mask.context_tokens': 14}
  if dtype == 'float32':
    # The first of several blocks is never dropped.
    changes |= {'model.variant': 'golden', 'model.drop_path': 0.5}
  config = cases.config(changes)
  learner = train_step.Learner(config)
  return cases.jit(learner.step, donate_argnums=0), config


@pytest.fixture(scope='module', params=['float32', 'bfloat16'])
def stepped(request):
  """A state, and the state and metrics after one step."""
  step, config = program(request.param)
  before = cases.state(config)
  after = step(before, cases.batch(config), SCHEDULE)
  return before, *jax.device_get(after)


def test_state_and_metrics_stay_float32(stepped):
  before, after, metrics = stepped
  leaves = jax.tree.leaves((after.params, after.target, metrics))
  assert {leaf.dtype for leaf in leaves} == {jnp.dtype('float32')}
  assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
    lambda x: (x.shape, x.dtype), before
  )


def test_metrics_are_finite(stepped):
  _, after, metrics = stepped
  values = metrics | cases.jit(train_step.state_metrics)(after)
  assert np.isfinite([float(x) for x in values.values()]).all()
  assert metrics['loss'] > 0
  assert metrics['grad_norm'] > 0
  assert after.step == 1


def test_every_trained_parameter_moves(stepped):
  before, after, _ = stepped
  moved = jax.tree.map(
    lambda a, b: bool((a != b).any()), after.params, before.params
  )
  still = {
    jax.tree_util.keystr(path, simple=True, separator='.')
    for path, x in jax.tree.leaves_with_path(moved)
    if not x
  }
  assert still == {'encoder.pos_embed', 'predictor.pos_embed'}


def test_target_follows_the_updated_encoder(stepped):
  before, after, _ = stepped
  mean = jax.tree.map(
    lambda new, old: 0.25 * new + 0.75 * old,
    after.params['encoder'],
    before.target,
  )
  assert cases.difference(after.target, mean) < 1e-6
  assert cases.difference(after.params, before.params) > 1e-3


def test_first_step_is_the_sign_of_the_gradient_and_the_decay(stepped):
  before, after, _ = stepped
  old, new = (x.params['predictor']['proj'] for x in (before, after))
  # Of kernels lr * weight_decay = a tenth decays, of biases nothing.
  for moved in (
    new['kernel'] - 0.9 * old['kernel'],
    new['bias'] - old['bias'],
  ):
    # Less than lr only where the gradient is as small as Adam's eps.
    assert np.quantile(np.abs(moved), 0.1) == pytest.approx(1e-2, rel=0.01)
    assert np.abs(moved).max() == pytest.approx(1e-2, rel=0.01)


def test_positions_have_no_moments(stepped):
  _, after, _ = stepped
  moments = [
    jax.tree_util.keystr(path)
    for path, _ in jax.tree.leaves_with_path(after.opt_state)
  ]
  assert not [name for name in moments if 'pos_embed' in name]
  # Two moments per trained tensor, and the count.
  trained = len(jax.tree.leaves(after.params)) - 2
  assert len(moments) == 2 * trained + 1


def test_clip_limits_the_norm_of_the_gradient():
  params = {'kernel': np.zeros(2, np.float32)}
  gradient = {'kernel': np.array([3e-8, 4e-8], np.float32)}

  def update(clip):
    chain = optim.make_optimizer(1.0, 0.0, clip)
    return chain.update(gradient, chain.init(params), params)[0]['kernel']

  # So near to Adam's eps of 1e-8 that the size of the gradient shows.
  np.testing.assert_allclose(update(0.0), [-3 / 4, -4 / 5], rtol=1e-5)
  np.testing.assert_allclose(update(1e-8), [-3 / 8, -4 / 9], rtol=1e-5)


def test_names_that_decay():
  config = cases.config()
  params = jax.eval_shape(lambda: train_step.init_state(config).params)
  decays = {
    jax.tree_util.keystr(path, simple=True, separator='.')
    for path, x in jax.tree.leaves_with_path(optim.decay_mask(params))
    if x
  }
  blocks = [
    f'{model}.trunk.blocks.{layer}.kernel'
    for model in ('encoder', 'predictor')
    for layer in ('qkv', 'proj', 'fc1', 'fc2')
  ]
  assert decays == {
    *blocks,
    'encoder.patch_embed.kernel',
    'predictor.embed.kernel',
    'predictor.mask_token',
    'predictor.proj.kernel',
  }


def test_figures_of_the_state():
  state = train_step.TrainState(
    step=0,
    params={'encoder': np.array([3.0]), 'predictor': np.array([4.0])},
    target=np.array([1.0]),
    opt_state=optax.EmptyState(),
  )
  figures = train_step.state_metrics(state)
  assert figures == {'param_norm': 5, 'target_distance': 2}


# --- Randomness and compilation --------------------------------------------


def test_drop_path_depends_on_the_step_and_on_nothing_else():
  run, config = program('float32')

  def loss(step):
    state = dataclasses.replace(cases.state(config), step=np.int32(step))
    return float(run(state, cases.batch(config), SCHEDULE)[1]['loss'])

  assert loss(0) == loss(0)
  assert len({loss(step) for step in range(4)}) > 2


def test_500_varied_masks_compile_once():
  run, config = program('float32')
  batches = [cases.batch(config, step) for step in range(500)]
  lengths = [(*b['target_length'], *b['context_length']) for b in batches]
  assert len(set(lengths)) > 100
  state, _ = run(jax.device_put(cases.state(config)), batches[0], SCHEDULE)
  compiled = run._cache_size()
  for batch in batches[1:]:
    state, _ = run(state, batch, SCHEDULE)
  assert run._cache_size() == compiled
  assert state.step == 500
