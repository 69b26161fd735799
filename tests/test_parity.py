"""The core against numbers of the reference (golden/README.md).

`benchmarks/parity.py` compares; the tests below read its rows, and make
mistakes that it must find.
"""

from unittest import mock

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import parity
import parity_batch
import parity_files
import parity_golden
import parity_models
import parity_report
import parity_schedules
import parity_training
import pytest
from flax import nnx

from ijepa_jax import optim, train_step
from ijepa_jax.models import elementwise, layers, sizes, vit

FORWARD = parity_batch.FORWARD


@pytest.fixture(scope='module')
def folder():
  return parity_files.Folder(cases.GOLDEN)


def opened(folder, name, prefix=''):
  """Golden arrays, sizes and weights."""
  path = folder.path / f'{name}.npz'
  golden = folder.read(path)
  weights = parity_models.make_weights(golden.tensors(prefix), path)
  shape = parity_golden.shape_of(folder.entries(path), *weights.params.values())
  return golden, shape, weights


# --- Every golden number ---------------------------------------------------


@pytest.fixture(scope='module')
def rows(folder):
  compared = parity.Comparison(folder).run().rows
  return {(row.source, row.quantity): row for row in compared}


@pytest.mark.parametrize(
  'quantity',
  [
    'target_full',
    'target_ln',
    'context_out',
    'predictor_out',
    'loss_f64',
    'grad/encoder (28 tensors)',
    'grad/encoder (2 key biases)',
    'grad/predictor (31 tensors)',
    'grad/predictor (2 key biases)',
    'gradient of positions',
    'padded: context_out',
    'padded: predictor_out',
    'padded: loss',
    'padded: gradients (61 tensors)',
    'padded: gradient there',
  ],
)
def test_one_batch(rows, quantity):
  assert rows['model_micro', quantity].passed


@pytest.mark.parametrize('quantity', ['target_full', 'target_ln'])
def test_eps_of_layer_norms(rows, quantity):
  # The tool's tolerance is wider: it must hold for any probe.
  assert rows['eps_probe', quantity].difference < FORWARD


@pytest.mark.parametrize(
  'quantity',
  [
    'lr',
    'wd',
    'momentum',
    'one_minus_momentum in the step',
    'final (90 tensors)',
    'final (6 key biases)',
    'loss_f64 of 20 updates',
  ],
)
def test_many_updates(rows, quantity):
  assert rows['traj_micro', quantity].passed


@pytest.mark.parametrize('config', parity_schedules.PUBLISHED)
def test_schedules_in_the_step(rows, config):
  for name in ('lr', 'weight_decay', 'one_minus_momentum'):
    assert rows[config, f'{name} in the step'].passed


# --- Padding ---------------------------------------------------------------


@pytest.fixture(scope='module')
def micro(folder):
  """Golden arrays, sizes, weights and the batch."""
  golden, shape, weights = opened(folder, 'model_micro')
  given = [golden[n] for n in ('images_u8', 'masks_enc', 'masks_pred')]
  return golden, shape, weights, parity_golden.make_batch(*given)


def test_only_the_context_has_a_gradient_and_no_value_in_padding_matters(
  micro,
):
  _, shape, weights, batch = micro
  # Unrolled; the tool runs the loop.
  model = parity_models.Model(shape, changes={'model.unroll': True})
  backward = cases.jit(model.gradients)
  unseen, _ = parity_batch.unseen_patches(batch, shape.patches)
  slopes = backward(weights, parity_batch.padded(batch, unseen))
  by_patch = parity_batch.slopes_of_patches(slopes[1], shape.patch_size)
  assert np.take_along_axis(by_patch, batch['context'], 1).all()
  assert np.count_nonzero(by_patch) == batch['context'].size
  again = backward(weights, parity_batch.padded(batch, 0 * unseen))
  assert cases.difference(again, slopes) == 0


# --- Mistakes in the model -------------------------------------------------


def no_target_norm(self, encoder, images, target):
  features = self.encode(encoder, images)
  return jnp.take_along_axis(features[:, None], target[..., None], axis=2)


def tanh_gelu(x):
  return jax.nn.gelu(x, approximate=True)


def columns_first(images, patch_size, right=vit.patchify):
  return right(jnp.swapaxes(images, 1, 2), patch_size)


def target_sees_context(
  self, params, target, *batch, right=train_step.Learner.loss
):
  return right(self, params | {'encoder': target}, target, *batch)


def context_makes_targets(
  self, params, target, *batch, right=train_step.Learner.loss
):
  return right(self, params, params['encoder'], *batch)


@pytest.mark.parametrize(
  ('holder', 'name', 'wrong', 'output'),
  [
    (elementwise, 'gelu', tanh_gelu, 'target_full'),
    (train_step.Learner, 'targets', no_target_norm, 'target_ln'),
    (vit, 'patchify', columns_first, 'target_full'),
    (train_step.Learner, 'loss', target_sees_context, 'loss'),
    (train_step.Learner, 'loss', context_makes_targets, 'loss'),
  ],
  ids=[
    'tanh GELU',
    'target LayerNorm missing',
    'rows and columns of the image swapped',
    'target encoder where the context encoder belongs',
    'context encoder where the target encoder belongs',
  ],
)
def test_mistake_in_the_model_is_found(
  monkeypatch, micro, holder, name, wrong, output
):
  golden, shape, weights, batch = micro
  monkeypatch.setattr(holder, name, wrong)
  ours = parity_models.forward(shape, weights, batch, (output,))[output]
  theirs = golden['loss_f64' if output == 'loss' else output]
  assert cases.difference(ours, theirs) > FORWARD


@pytest.mark.parametrize('eps', [1e-5, 1e-12])
def test_mistake_in_the_eps_is_found(monkeypatch, micro, eps):
  monkeypatch.setattr(layers, 'EPSILON', eps)
  probe = cases.golden('eps_probe')
  target = parity_golden.to_ours(probe, 'target_encoder', probe.path)
  _, shape, _, batch = micro
  report = parity_report.Report()
  parity_batch.compare_probe(
    report, 'probe', shape, parity_models.Weights({}, target), batch, probe
  )
  assert 'target_ln' in [row.quantity for row in report.failed]


def initial_positions():
  def make():
    size = sizes.Size(48, 1, 3)
    encoder = vit.Encoder(size, patch_size=8, image_size=96, rngs=nnx.Rngs(0))
    return encoder.pos_embed[...]

  return cases.jit(make)()


def test_initial_positions():
  theirs = cases.golden('traj_micro')['init/encoder/pos_embed'][0]
  assert cases.difference(initial_positions(), theirs) < 1e-6


def test_rows_and_columns_of_positions_swapped_is_found(monkeypatch):
  right = layers.sincos_positions

  def swapped(width, grid):
    return np.roll(right(width, grid), width // 2, axis=1)

  monkeypatch.setattr(layers, 'sincos_positions', swapped)
  theirs = cases.golden('traj_micro')['init/encoder/pos_embed'][0]
  assert cases.difference(initial_positions(), theirs) > 1e-2


# --- Mistakes in the update ------------------------------------------------


@pytest.fixture(scope='module')
def train(folder):
  """Runs the golden updates; returns the rows that fail.

  Gradients and update are compiled apart, so that a mistake in the update
  costs no second compilation of the gradients.
  """
  golden, shape, weights = opened(folder, 'traj_micro', 'init/')
  described = folder.entries(golden.path)['schedule']
  schedules = parity_schedules.make_schedules(described, golden.path)
  model = parity_models.Model(shape, changes={'model.unroll': True})
  gradients = jax.jit(model.learner.gradients)

  def run():
    @cases.jit
    def update(state, batch, schedule, result):
      with mock.patch.object(model.learner, 'gradients', return_value=result):
        return model.learner.step(state, batch, schedule)

    def step(state, batch, schedule):
      return update(state, batch, schedule, gradients(state, batch))

    report = parity_report.Report()
    golden_run = parity_training.Run(shape, weights, schedules, golden)
    final = {'final': golden.section('final')}
    parity_training.compare(report, 'traj', golden_run, step, final)
    assert len(report.rows) == 3
    return report.failed

  return run


def test_unrolled_updates_too(train):
  assert train() == []


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
  assert train() != []
