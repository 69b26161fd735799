"""The whole loop on tiny shapes, in this process."""

import gc
import json
import re
import sys

import jax
import numpy as np
import pytest
import tiny
from matplotlib.figure import Figure
from PIL import Image

from ijepa_jax import errors, program, run_files, train
from ijepa_jax.evaluation import features


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_run_leaves_rows_checkpoints_and_pictures(tmp_path, capsys):
  train.train(tiny.config(eval__every=3), tmp_path)

  rows = tiny.rows(tmp_path)
  assert [r['step'] for r in rows if 'train/loss' in r] == [1, 2, 3, 4, 5, 6]
  assert [r['step'] for r in rows if 'health/rankme' in r] == [0, 3, 6]
  expected = {
    'train/lr',
    'train/weight_decay',
    'train/momentum',
    'train/grad_norm',
    'train/param_norm',
    'train/target_distance',
    'train/images_per_second',
    'train/data_wait_share',
    'train/model_tflops',
    'health/target_variance',
    'health/prediction_variance',
    'health/prediction_target_cosine',
  }
  assert expected <= rows[-2].keys()
  measured = {
    'probe/count/knn',
    'probe/shape/linear',
    'health/lidar',
    'rankme_block/03',
    'attention_entropy/00',
  }
  assert measured <= rows[-1].keys()
  assert {'chance/count', 'pixels/probe/count/knn'} <= rows[0].keys()
  for name in ('masks.png', 'curves.png'):
    assert Image.open(tmp_path / name).size > (500, 300)
  assert 'encoder' in (tmp_path / 'parameters.txt').read_text()
  said = capsys.readouterr()
  assert str(tmp_path / 'checkpoints' / '6') in said.out
  assert '--config=configs/folder.py' in said.out
  # The same figures, in which evaluations have no part.
  speeds = [r['train/images_per_second'] for r in rows if 'train/loss' in r]
  told = [f'{speed:,.{0 if speed >= 10 else 1}f}' for speed in speeds]
  assert re.findall(r'([\d,.]+) images/s', said.err) == told


def test_drawing_while_training_leaves_no_garbage(tmp_path):
  gc.collect()
  gc.disable()  # a large heap is looked through seldom, and so piles up
  try:
    train.train(tiny.config(total_steps=2, eval__every=1), tmp_path)
    assert not [o for o in gc.get_objects() if isinstance(o, Figure)]
  finally:
    gc.enable()


def test_the_loss_falls(tmp_path):
  train.train(tiny.config(total_steps=40, checkpoint__every=40), tmp_path)
  losses = [row['train/loss'] for row in tiny.rows(tmp_path)]
  assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_the_same_seed_gives_the_same_parameters(tmp_path):
  for name in ('a', 'b'):
    train.train(tiny.config(total_steps=3), tmp_path / name)
  tiny.assert_same_state(tmp_path / 'a', tmp_path / 'b', 3)


def test_another_seed_gives_other_parameters(tmp_path):
  for seed in (0, 1):
    train.train(tiny.config(total_steps=1, seed=seed), tmp_path / str(seed))
  kernels = [
    tiny.saved_state(tmp_path / seed, 1)['params']['encoder']['patch_embed']
    for seed in ('0', '1')
  ]
  assert not np.array_equal(kernels[0]['kernel'], kernels[1]['kernel'])


def test_a_finished_run_prints_its_table_again(tmp_path, capsys):
  config = tiny.config(total_steps=2)
  train.train(config, tmp_path)
  rows = tiny.rows(tmp_path)
  capsys.readouterr()
  train.train(config, tmp_path)
  assert 'Trained 2 steps' in capsys.readouterr().out
  assert tiny.rows(tmp_path) == rows
  starts = run_files.read(tmp_path).starts
  assert [start['step'] for start in starts] == [0, 2]
  assert starts[0]['steps'] == 2
  assert starts[0]['command'] == sys.orig_argv
  assert starts[0]['versions']['jax'] == jax.__version__
  assert 'JAX_PLATFORMS' in starts[0]['variables']


def test_checkpoints_are_kept_by_count_and_by_period(tmp_path):
  config = tiny.config(
    total_steps=8, checkpoint__keep=1, checkpoint__keep_period=4
  )
  train.train(config, tmp_path)
  steps = {int(p.name) for p in (tmp_path / 'checkpoints').iterdir()}
  assert steps == {4, 8}


def test_a_checkpoint_tells_its_config_and_versions(tmp_path):
  config = tiny.config(total_steps=2)
  train.train(config, tmp_path)
  with pytest.raises(errors.UserError, match=r'optim\.lr'):
    train.train(tiny.config(total_steps=2, optim__lr=0.5), tmp_path)
  folder = tmp_path / 'checkpoints' / '2' / 'meta'
  meta = json.loads((folder / 'metadata').read_text())
  assert meta['config']['batch_size'] == 8
  assert meta['versions']['jax'] == jax.__version__


@pytest.mark.parametrize(
  ('change', 'field'),
  [
    ({'seed': 1}, 'seed: 0 -> 1'),
    ({'batch_size': 16}, 'batch_size: 8 -> 16'),
    ({'data__crop_scale': (0.5, 1.0)}, 'data.crop_scale'),
  ],
)
def test_a_change_that_breaks_the_resume_is_refused(tmp_path, change, field):
  train.train(tiny.config(total_steps=2), tmp_path)
  with pytest.raises(errors.UserError, match=field):
    train.train(tiny.config(total_steps=2, **change), tmp_path)


def test_a_change_that_is_safe_is_accepted(tmp_path):
  train.train(tiny.config(total_steps=2), tmp_path)
  train.train(tiny.config(total_steps=2, checkpoint__keep=7), tmp_path)


def test_an_unreadable_checkpoint_stops_the_run(tmp_path):
  config = tiny.config(total_steps=2)
  train.train(config, tmp_path)
  folder = tmp_path / 'checkpoints' / '2' / 'state'
  for file in folder.rglob('*'):
    if file.is_file():
      file.write_bytes(b'')
  with pytest.raises(errors.UserError, match='checkpoints/2'):
    train.train(config, tmp_path)


def test_init_from_takes_weights_and_starts_at_step_0(tmp_path, capsys):
  train.train(tiny.config(total_steps=2), tmp_path / 'first')
  second = tiny.config(
    total_steps=1,
    seed=5,
    optim__lr=1e-12,
    optim__start_lr=0.0,
    optim__final_lr=0.0,
    optim__ema=1.0,
    init_from=str(tmp_path / 'first'),
  )
  train.train(second, tmp_path / 'second')
  a = tiny.saved_state(tmp_path / 'first', 2)
  b = tiny.saved_state(tmp_path / 'second', 1)
  assert b['step'] == 1
  for part in ('params', 'target'):
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=1e-9),
      a[part],
      b[part],
    )


def test_init_from_weights_of_another_size_is_refused(tmp_path):
  train.train(tiny.config(total_steps=1), tmp_path / 'first')
  other = tiny.config(
    total_steps=1, predictor__width=96, init_from=str(tmp_path / 'first')
  )
  with pytest.raises(errors.UserError, match=r'predictor/.*96'):
    train.train(other, tmp_path / 'second')


def test_missing_init_from_is_one_line(tmp_path):
  config = tiny.config(init_from=str(tmp_path / 'nothing'))
  with pytest.raises(errors.UserError, match='does not exist'):
    train.train(config, tmp_path / 'run')


def test_a_nan_stops_the_run_and_keeps_the_batch(tmp_path):
  config = tiny.config(
    total_steps=30,
    optim__lr=1e15,
    optim__start_lr=1e15,
    loss='l2',
    checkpoint__every=1,
  )
  with pytest.raises(errors.NonFiniteError) as caught:
    train.train(config, tmp_path)
  (file,) = tmp_path.glob('nonfinite_step_*.json')
  kept = json.loads(file.read_text())
  assert len(kept['records']) == 8
  assert f'at step {kept["step"]}' in str(caught.value)
  good = tiny.saved_state(tmp_path, max(kept['step'] - 1, 1))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(good))


def test_500_steps_of_varied_masks_compile_nothing_after_the_first(
  tmp_path, monkeypatch
):
  compiled, sizes, armed = [], set(), []

  def count(event, _seconds, **_):
    if armed and event.endswith('backend_compile_duration'):
      compiled.append(event)

  original = train.observe.Observer.step

  def observe_step(self, step, values):
    armed[:] = [True] if 1 < step < 500 else []
    original(self, step, values)

  def put_batch(mesh, batch, original=train.sharding.put_batch):
    sizes.add(int(batch['target_length'][0]))
    return original(mesh, batch)

  jax.monitoring.register_event_duration_secs_listener(count)
  monkeypatch.setattr(train.observe.Observer, 'step', observe_step)
  monkeypatch.setattr(train.sharding, 'put_batch', put_batch)
  config = tiny.config(total_steps=500, checkpoint__every=500, log__every=1)
  train.train(config, tmp_path)
  assert len(sizes) > 1
  assert compiled == []


def test_the_encoder_that_is_judged_is_the_target(tmp_path, monkeypatch):
  judged = []
  original = features.FeatureExtractor.__call__

  def extract(self, encoder, images):
    judged.append(jax.device_get(encoder))
    return original(self, encoder, images)

  monkeypatch.setattr(features.FeatureExtractor, '__call__', extract)
  train.train(tiny.config(total_steps=2, eval__every=2), tmp_path)
  state = tiny.saved_state(tmp_path, 2)
  assert_same(judged[-1], state['target'])
  kernels = [
    tree['patch_embed']['kernel']
    for tree in (judged[-1], state['params']['encoder'])
  ]
  assert not np.array_equal(*kernels)


def test_cudnn_without_a_gpu_is_one_line(tmp_path):
  with pytest.raises(errors.UserError, match=r'model\.attention'):
    train.train(tiny.config(model__attention='cudnn'), tmp_path)


def test_buckets_of_targets_change_no_number(tmp_path, monkeypatch):
  used = []

  def call(self, state, batch, schedule, original=program.Step.__call__):
    used.append(batch['target'].shape[-1])
    return original(self, state, batch, schedule)

  monkeypatch.setattr(program.Step, '__call__', call)
  losses = []
  for buckets in (1, 2):
    config = tiny.config(
      total_steps=8,
      model__target_buckets=buckets,
      mask__target_scale=(0.15, 0.4),
    )
    train.train(config, tmp_path / str(buckets))
    rows = tiny.rows(tmp_path / str(buckets))
    losses.append([row['train/loss'] for row in rows])
  np.testing.assert_allclose(*losses, rtol=0, atol=1e-6)
  assert (len(set(used[:8])), len(set(used[8:]))) == (1, 2)
