"""The core against numbers of the reference (golden/README.md)."""

from unittest import mock

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_weights
from flax import nnx

from ijepa_jax import optim, train_step
from ijepa_jax.models import layers, sizes, vit

golden_size = cases.golden_size

FORWARD = 2e-5  # absolute; float32 against float64 is 4e-6
LOSS = 2e-6
GRADIENT = 2e-5  # relative, per tensor
TRAJECTORY_LOSS = 5e-6
TRAJECTORY_PARAMETERS = 5e-6


# --- One forward and backward pass -----------------------------------------


@pytest.fixture(scope='module')
def micro():
  return cases.golden('model_micro')


@pytest.fixture(scope='module')
def images(micro):
  pixels = cases.golden_images(11_000, (4, 3, 48, 48), micro['images_crc32'])
  return (pixels - np.float32(127.5)) / np.float32(64)


@pytest.fixture(scope='module')
def weights(micro):
  target = reference_weights.encoder(cases.section(micro, 'target_encoder'))
  return cases.parameters(micro), target


@pytest.fixture(scope='module')
def masks(micro):
  return cases.golden_masks(micro['masks_enc'], micro['masks_pred'])


# What the golden file has of a forward pass, as functions of a learner.
OUTPUTS = {
  'target_full': lambda learner, params, target, images, masks: learner.encode(
    target, images
  ),
  'target_ln': lambda learner, params, target, images, masks: learner.targets(
    target, images, jnp.arange(36)[None, None]
  )[:, 0],
  'context_out': lambda learner, params, target, images, masks: nnx.merge(
    learner._encoder, params['encoder']
  )(images, masks['context'], masks['context_length']),
  'predictor_out': lambda learner, params, target, images, masks: (
    learner.predictions(params, images, masks, None)
  ),
  'loss': lambda learner, params, target, images, masks: learner.loss(
    params, target, images, masks
  )[0],
}


def forward(names, weights, images, masks):
  """Outputs of a forward pass by their names in the golden file."""
  learner = train_step.Learner(cases.config())

  @cases.jit
  def run(*inputs):
    return {name: OUTPUTS[name](learner, *inputs) for name in names}

  return run(*weights, images, masks)


def expected(micro, name):
  if name == 'loss':
    return micro['loss_f64']
  if name == 'predictor_out':
    guess = micro[name]  # (M * B, T, D), block by block
    return guess.reshape(4, 4, *guess.shape[1:]).swapaxes(0, 1)
  return micro[name]


@pytest.fixture(scope='module')
def outputs(weights, images, masks):
  return forward(OUTPUTS, weights, images, masks)


@pytest.mark.parametrize(
  ('name', 'tolerance'),
  [
    ('target_full', FORWARD),
    ('target_ln', FORWARD),
    ('context_out', FORWARD),
    ('predictor_out', FORWARD),
    ('loss', LOSS),
  ],
)
def test_forward_pass(outputs, micro, name, tolerance):
  assert cases.difference(outputs[name], expected(micro, name)) < tolerance


@pytest.fixture(scope='module')
def backward():
  # Unrolled; the forward pass above is of the loop.
  learner = train_step.Learner(cases.config({'model.unroll': True}))
  # Images too: what has no gradient was not looked at.
  run = jax.value_and_grad(learner.loss, argnums=(0, 2), has_aux=True)
  return cases.jit(run)


@pytest.fixture(scope='module')
def gradients(backward, weights, images, masks):
  return backward(*weights, images, masks)[1]


def test_gradients(gradients, micro):
  theirs = cases.section(micro, 'grad')
  # The reference has none for positions: ours must be zero.
  for name in ('encoder/pos_embed', 'predictor/predictor_pos_embed'):
    theirs[name] = np.zeros_like(micro[name])
  differences = cases.gradient_difference(
    gradients[0], cases.parameters(theirs)
  )
  key_bias = {n: differences.pop(n) for n in [*differences] if 'key' in n}
  assert len(key_bias) == 4
  assert max(key_bias.values()) < 1e-7
  assert max(differences.values()) < GRADIENT, differences


# --- Padding ---------------------------------------------------------------


def padded(masks, context_fill, target_fill):
  """The masks with 3 and 2 invalid entries more per row."""
  return masks | {
    'context': cases.pad(masks['context'], 9, context_fill),
    'target': cases.pad(masks['target'], 8, target_fill),
  }


def unseen_patch(masks):
  """A patch that no context of the batch contains."""
  return np.setdiff1d(np.arange(36), masks['context'])[0]


@pytest.fixture(scope='module')
def padded_backward(backward, weights, images, masks):
  filled = padded(masks, unseen_patch(masks), 35)
  return backward(*weights, images, filled)


def test_padding_changes_no_gradient(padded_backward, gradients):
  ours = cases.gradient_difference(padded_backward[1][0], gradients[0])
  assert max(ours.values()) < 1e-5, ours


def test_padding_changes_no_loss_and_no_health(
  padded_backward, backward, weights, images, masks
):
  exact = backward(*weights, images, masks)[0]
  assert cases.difference(padded_backward[0], exact) < 1e-6


def test_padding_changes_no_prediction(outputs, weights, images, masks):
  filled = padded(masks, unseen_patch(masks), 35)
  guess = forward(['predictor_out'], weights, images, filled)
  guess = guess['predictor_out'][:, :, :6]
  assert cases.difference(guess, outputs['predictor_out']) < 1e-5


def test_gradient_at_padding_is_exactly_zero(padded_backward, masks):
  slopes = vit.patchify(padded_backward[1][1], 8)  # (B, N, P * P * 3)
  slopes = np.abs(slopes).max(-1)
  assert not slopes[:, unseen_patch(masks)].any()
  assert np.take_along_axis(slopes, masks['context'], 1).all()


def test_values_in_padding_do_not_matter(
  padded_backward, backward, weights, images, masks
):
  again = backward(*weights, images, padded(masks, 0, 0))
  assert cases.difference(again, padded_backward) == 0


# --- Layer norm eps --------------------------------------------------------


@pytest.fixture(scope='module')
def probe():
  return cases.golden('eps_probe')


def probe_output(probe, images):
  learner = train_step.Learner(cases.config())
  target = reference_weights.encoder(cases.section(probe, 'target_encoder'))
  everything = np.tile(np.arange(36), (4, 1, 1))
  return cases.jit(learner.targets)(target, images, everything)[:, 0]


def test_eps_of_layer_norms(probe, images):
  ours = probe_output(probe, images)
  assert cases.difference(ours, probe['target_ln']) < FORWARD


# --- Positions -------------------------------------------------------------


def initial_positions():
  def make():
    size = sizes.Size(48, 1, 3)
    encoder = vit.Encoder(size, patch_size=8, image_size=96, rngs=nnx.Rngs(0))
    return encoder.pos_embed[...]

  return cases.jit(make)()


def test_initial_positions(trajectory):
  theirs = trajectory['init/encoder/pos_embed'][0]
  assert cases.difference(initial_positions(), theirs) < 1e-6


# --- 20 steps of training --------------------------------------------------


@pytest.fixture(scope='module')
def trajectory():
  return cases.golden('traj_micro')


@pytest.fixture(scope='module')
def trajectory_images(trajectory):
  shape = (20, 8, 3, 96, 96)
  return cases.golden_images(21, shape, trajectory['images_crc32'])


def trajectory_config():
  return cases.config(
    {'model.image_size': 96, 'model.unroll': True, 'batch_size': 8}
  )


@pytest.fixture(scope='module')
def train(trajectory, trajectory_images):
  """Runs the golden steps.

  Gradients and update are compiled apart, so that a mistake in the update
  costs no second compilation of the gradients.
  """
  config = trajectory_config()
  learner = cases.golden_learner(config)
  gradients = jax.jit(learner.gradients)
  init = cases.parameters(trajectory, 'init/')
  final = {
    **cases.parameters(trajectory, 'final/'),
    'target': reference_weights.encoder(
      cases.section(trajectory, 'final/target_encoder')
    ),
  }

  def run():
    """Differences of the losses, and of the final parameters."""

    @cases.jit
    def update(state, batch, schedule, result):
      with mock.patch.object(learner, 'gradients', return_value=result):
        return learner.step(state, batch, schedule)

    schedules = optim.make_schedules(config, 5)
    state = train_step.TrainState(
      step=jnp.zeros((), jnp.int32),
      params=init,
      target=init['encoder'],
      opt_state=optim.make_optimizer().init(init),
    )
    losses = []
    for i in range(20):
      batch = cases.golden_masks(
        trajectory[f'masks_enc_{i:02}'],
        trajectory[f'masks_pred_{i:02}'],
        (53, 30),  # the longest of all steps
      )
      batch['image'] = trajectory_images[i]
      result = gradients(state, batch)
      state, metrics = update(state, batch, schedules.at(i), result)
      losses.append(metrics['loss'])
    return (
      cases.difference(np.stack(losses), trajectory['loss_f64']),
      cases.difference(state.params | {'target': state.target}, final),
    )

  return run


def test_trajectory(train):
  loss, parameters = train()
  assert loss < TRAJECTORY_LOSS
  assert parameters < TRAJECTORY_PARAMETERS


# --- Mistakes that the comparisons above must find -------------------------


def no_target_norm(self, encoder, images, target):
  features = self.encode(encoder, images)
  return jnp.take_along_axis(features[:, None], target[..., None], axis=2)


def tanh_gelu(x, approximate):
  return jax.nn.gelu(x, approximate=True)


def columns_first(images, patch_size, right=vit.patchify):
  return right(jnp.swapaxes(images, 1, 2), patch_size)


@pytest.mark.parametrize(
  ('holder', 'name', 'wrong', 'output'),
  [
    (nnx, 'gelu', tanh_gelu, 'target_full'),
    (train_step.Learner, 'targets', no_target_norm, 'target_ln'),
    (vit, 'patchify', columns_first, 'target_full'),
  ],
  ids=['tanh GELU', 'target LayerNorm missing', 'rows and columns swapped'],
)
def test_mistake_in_the_model_is_found(
  monkeypatch, weights, images, masks, micro, holder, name, wrong, output
):
  monkeypatch.setattr(holder, name, wrong)
  ours = forward([output], weights, images, masks)[output]
  assert cases.difference(ours, expected(micro, output)) > FORWARD


@pytest.mark.parametrize('eps', [1e-5, 1e-12])
def test_mistake_in_the_eps_is_found(monkeypatch, probe, images, eps):
  monkeypatch.setattr(layers, 'EPSILON', eps)
  ours = probe_output(probe, images)
  assert cases.difference(ours, probe['target_ln']) > FORWARD


def test_mistake_in_the_positions_is_found(monkeypatch, trajectory):
  right = layers.sincos_positions

  def swapped(width, grid):
    return np.roll(right(width, grid), width // 2, axis=1)

  monkeypatch.setattr(layers, 'sincos_positions', swapped)
  theirs = trajectory['init/encoder/pos_embed'][0]
  assert cases.difference(initial_positions(), theirs) > 1e-2


def ema_before_update(self, *inputs, right=train_step.Learner.step):
  state, _, schedule = inputs
  new, metrics = right(self, *inputs)
  new.target = optax.incremental_update(
    state.params['encoder'], state.target, schedule['one_minus_momentum']
  )
  return new, metrics


def late(self, step, right=optim.Schedules.at):
  return right(self, max(step - 1, 0))


@pytest.mark.parametrize(
  ('holder', 'name', 'wrong'),
  [
    (train_step.Learner, 'step', ema_before_update),
    (optim.Schedules, 'at', late),
    (optim, '_DECAYED', ('kernel', 'mask_token', 'bias')),
    (optim, '_DECAYED', ('kernel',)),
  ],
  ids=[
    'EMA before the update',
    'schedule off by one',
    'biases decayed',
    'mask token not decayed',
  ],
)
def test_mistake_in_the_update_is_found(
  monkeypatch, train, holder, name, wrong
):
  monkeypatch.setattr(holder, name, wrong)
  loss, parameters = train()
  assert loss > TRAJECTORY_LOSS or parameters > TRAJECTORY_PARAMETERS
