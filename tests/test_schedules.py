"""Learning rate, weight decay and momentum, against the reference's."""

import math

import cases
import numpy as np
import parity_schedules
import pytest

from ijepa_jax import optim


@pytest.fixture(scope='module')
def golden():
  return cases.golden('schedules')


@pytest.fixture(scope='module', params=parity_schedules.PUBLISHED)
def published(request, golden):
  schedules = parity_schedules.published(request.param)
  return schedules, golden.section(request.param)


@pytest.mark.parametrize(
  ('ours', 'theirs'),
  [('lr', 'lr'), ('weight_decay', 'wd'), ('momentum', 'momentum')],
)
def test_published_run(published, ours, theirs):
  schedules, golden = published
  values = getattr(schedules, ours)[golden['idx']]
  np.testing.assert_allclose(values, golden[theirs], rtol=1e-9)


def test_published_run_complement_of_momentum(published):
  schedules, golden = published
  values = schedules.one_minus_momentum[golden['idx']]
  # Theirs is rounded at 1: 1e-16 of 1e-7.
  np.testing.assert_allclose(values, 1 - golden['momentum'], atol=3e-16)


def test_off_by_one_would_show(golden):
  schedules = parity_schedules.published('in1k_vith14_ep300')
  theirs = golden.section('in1k_vith14_ep300')
  early = schedules.lr[np.maximum(theirs['idx'] - 1, 0)]
  assert np.abs(early / theirs['lr'] - 1).max() > 1e-5


def small(**changes):
  """4 epochs of 10 steps, of which 1.5 warm up."""
  return cases.config({f'optim.{name}': x for name, x in changes.items()})


def test_lr_rises_then_falls_and_stays_in_its_range():
  lr = optim.make_schedules(small(), 10).lr
  assert lr.shape == (40,)
  assert (np.diff(lr[:15]) > 0).all()
  assert (np.diff(lr[14:]) < 0).all()
  # The first update already uses the value after one step of warm-up.
  assert lr[0] == pytest.approx(2e-4 + 8e-4 / 15, rel=1e-12)
  assert lr[14] == pytest.approx(1e-3, rel=1e-12)
  assert lr[-1] == pytest.approx(1e-6, rel=1e-9)


def test_no_warmup_starts_on_the_cosine():
  lr = optim.make_schedules(small(warmup_epochs=0.0), 10).lr
  cosine = (1 + math.cos(math.pi / 40)) / 2
  assert lr[0] == pytest.approx(1e-6 + (1e-3 - 1e-6) * cosine, rel=1e-12)


def test_fraction_of_a_warmup_step_is_dropped():
  whole = optim.make_schedules(small(warmup_epochs=1.5), 10)
  more = optim.make_schedules(small(warmup_epochs=1.58), 10)
  np.testing.assert_array_equal(whole.lr, more.lr)


def test_linear_weight_decay():
  schedules = optim.make_schedules(small(weight_decay_schedule='linear'), 10)
  line = 0.04 + (0.4 - 0.04) * np.arange(1, 41) / 40
  np.testing.assert_allclose(schedules.weight_decay, line, rtol=1e-12)


def test_scale_stretches_all_three_beyond_the_end():
  plain = optim.make_schedules(small(), 10)
  scaled = optim.make_schedules(small(schedule_scale=1.25), 10)
  assert scaled.lr.shape == (40,)
  assert scaled.lr[-1] > plain.lr[-1]
  assert scaled.weight_decay[-1] < 0.4
  rise = 0.004 * 39 / 50
  assert scaled.momentum[-1] == pytest.approx(0.996 + rise, rel=1e-12)


def test_scaled_length_is_truncated_in_the_order_of_the_reference():
  config = small(schedule_scale=1.02)
  config.total_epochs = 5
  ours = optim.make_schedules(config, 100).weight_decay
  length = int(1.02 * 5 * 100)
  assert length != int(1.02 * (5 * 100))
  angle = np.pi * np.arange(1, 501) / length
  expected = 0.4 + (0.04 - 0.4) / 2 * (1 + np.cos(angle))
  np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_momentum_starts_at_its_first_value():
  momentum = optim.make_schedules(small(), 10).momentum
  assert momentum[0] == pytest.approx(0.996, rel=1e-15)
  assert momentum[-1] == pytest.approx(1 - 0.004 / 40, rel=1e-12)


def test_total_steps_wins_over_epochs():
  config = small()
  config.total_steps = 17
  assert optim.make_schedules(config, 10).lr.shape == (17,)


def test_row_of_a_step_is_what_the_step_and_the_log_get():
  schedules = optim.make_schedules(small(), 10)
  row, log = schedules.at(33), schedules.metrics(33)
  assert {x.dtype for x in row.values()} == {np.dtype('float32')}
  assert row['lr'] == np.float32(log['train/lr'])
  assert row['weight_decay'] == np.float32(log['train/weight_decay'])
  # Exact, although 1 - momentum is not in float32.
  assert row['one_minus_momentum'] == np.float32(0.004 * 7 / 40)
  assert log['train/momentum'] == pytest.approx(1 - 0.004 * 7 / 40)


@pytest.mark.parametrize(
  ('images', 'batch', 'steps'),
  [(1_281_167, 2048, 625), (14_197_122, 2048, 6932), (5, 8, 1)],
)
def test_last_incomplete_batch_is_dropped(images, batch, steps):
  assert optim.steps_per_epoch(images, batch) == steps
