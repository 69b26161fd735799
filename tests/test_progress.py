"""Progress, health warnings and the final table."""

import fcntl
import io
import math
import os
import struct
import termios

import pytest

from ijepa_jax.metrics import health, progress, summary


class Clock:
  """Stands in for `time` inside `progress`."""

  def __init__(self, monkeypatch):
    self.now = 0.0
    monkeypatch.setattr(progress.time, 'monotonic', lambda: self.now)


class TestProgress:
  def test_plain_lines(self, monkeypatch):
    clock = Clock(monkeypatch)
    stream = io.StringIO()
    shown = progress.Progress(10_000, 1_000, 387, 64, stream=stream)
    for step in range(1_001, 1_201):
      clock.now += 0.0772
      shown.advance(step)
    assert stream.getvalue() == ''
    shown.report(1_200, 0.14321)
    shown.log('saved')
    shown.close()
    assert stream.getvalue().splitlines() == [
      'step 1,200/10,000  epoch 3.1  loss 0.1432  829 images/s  11 m 19 s left',
      'saved',
    ]

  def test_compilation_does_not_count(self, monkeypatch):
    clock = Clock(monkeypatch)
    stream = io.StringIO()
    shown = progress.Progress(100, 0, 10, 8, stream=stream)
    clock.now += 1_000  # the first step compiles
    shown.advance(1)
    for step in range(2, 12):
      clock.now += 1
      shown.advance(step)
    shown.report(11, 0.5)
    assert '8.0 images/s  1 m 29 s left' in stream.getvalue()

  def test_time_left_follows_the_speed(self, monkeypatch):
    clock = Clock(monkeypatch)
    stream = io.StringIO()
    shown = progress.Progress(1_000, 0, 10, 8, stream=stream)
    shown.advance(1)
    clock.now += 10
    shown.report(11, 0.5)  # 1 s per step
    clock.now += 20
    shown.report(21, 0.5)  # now 2 s: 1.3 s on average
    assert stream.getvalue().splitlines()[-1].endswith('21 m 13 s left')

  def test_evaluation_takes_time_but_no_speed(self, monkeypatch):
    clock = Clock(monkeypatch)
    stream = io.StringIO()
    shown = progress.Progress(101, 0, 10, 8, stream=stream)
    shown.advance(1)
    clock.now += 10 + 190  # 190 s of evaluation
    shown.report(11, 0.5, images_per_second=8.0)
    assert stream.getvalue().endswith('  8.0 images/s  30 m 00 s left\n')

  def test_first_step_has_no_speed(self):
    stream = io.StringIO()
    shown = progress.Progress(100, 0, 10, 8, stream=stream)
    shown.advance(1)
    shown.report(1, float('nan'))
    assert stream.getvalue() == 'step 1/100  epoch 0.1  loss nan\n'

  def test_other_processes_are_silent(self):
    stream = io.StringIO()
    shown = progress.Progress(100, 0, 10, 8, enabled=False, stream=stream)
    shown.advance(1)
    shown.report(1, 0.5)
    shown.log('saved')
    shown.close()
    assert stream.getvalue() == ''

  def test_bar_on_a_terminal(self, monkeypatch):
    monkeypatch.setenv('TERM', 'xterm')
    main, terminal = os.openpty()
    os.set_blocking(main, False)
    size = struct.pack('HHHH', 24, 100, 0, 0)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)
    with os.fdopen(terminal, 'w') as stream:
      shown = progress.Progress(100, 40, 10, 8, stream=stream)
      shown.advance(41)
      shown.advance(50)
      shown.report(50, 0.5)
      shown.log('saved')
      shown.close()
      text = os.read(main, 100_000).decode()
    os.close(main)
    assert '40%|' in text
    assert '50%|' in text
    assert 'step 50/100  epoch 5.0  loss 0.5000' in text
    assert 'saved\r\n' in text  # on a line of its own

  def test_terminal_without_a_size_gets_plain_lines(self):
    main, terminal = os.openpty()
    os.set_blocking(main, False)
    with os.fdopen(terminal, 'w') as stream:
      shown = progress.Progress(100, 40, 10, 8, stream=stream)
      shown.report(50, 0.5)
      text = os.read(main, 100_000).decode()
    os.close(main)
    assert text == 'step 50/100  epoch 5.0  loss 0.5000\r\n'

  @pytest.mark.parametrize(
    ('seconds', 'text'),
    [
      (-3, '0 s'),
      (59.4, '59 s'),
      (60, '1 m 00 s'),
      (3_599.6, '1 h 00 m'),
      (7_500, '2 h 05 m'),
      (277_200, '3 d 05 h'),
    ],
  )
  def test_duration(self, seconds, text):
    assert progress.duration(seconds) == text


HEALTHY = {
  'health/rankme': 12.0,
  'health/feature_std': 0.5,
  'health/image_cosine': 0.6,
  'health/target_variance': 0.5,
  'health/prediction_variance': 0.4,
  'health/prediction_target_cosine': 0.8,
}


class TestHealthWatch:
  def watch(self):
    """A watch that has seen a healthy run up to step 1,000."""
    watch = health.HealthWatch(feature_width=96, warmup_steps=200)
    for step in range(0, 1_001, 100):
      assert watch.check(step, HEALTHY) == []
    return watch

  @pytest.mark.parametrize(
    ('figure', 'value', 'says'),
    [
      ('rankme', 1.5, 'RankMe fell from 12.0 to 1.5 of 96'),
      ('feature_std', 0.01, 'fell from 0.5 to 0.01'),
      ('image_cosine', 0.995, 'mean cosine of 0.995'),
      ('target_variance', 0.01, 'same target'),
      ('prediction_variance', 0.001, 'says the same everywhere'),
      ('prediction_target_cosine', 0.02, 'nothing is being learnt'),
    ],
  )
  def test_each_cause(self, figure, value, says):
    warnings = self.watch().check(1_100, HEALTHY | {f'health/{figure}': value})
    assert len(warnings) == 1
    assert says in warnings[0]
    assert 'optim.lr' in warnings[0]  # what to try
    assert '\n' not in warnings[0]

  def test_blank_images_are_noticed_before_training(self):
    """LiDAR as measured with 95 % of the images black, and in collapse."""
    watch = health.HealthWatch(feature_width=96, warmup_steps=200)
    (warning,) = watch.check(0, {'health/lidar': 1.1})
    assert 'LiDAR is 1.10' in warning
    assert 'masks.png' in warning
    assert 'optim.lr' not in warning  # no cure for broken data
    watch = health.HealthWatch(feature_width=96, warmup_steps=200)
    assert watch.check(600, {'health/lidar': 3.57}) == []

  def test_limits_are_told(self):
    watch = health.HealthWatch(feature_width=96, warmup_steps=200)
    watch.check(0, HEALTHY | {'health/rankme': 1000.0})
    judged = watch.judged['rankme']
    assert (judged.value, judged.side, judged.bad) == (1000.0, 'below', False)
    assert judged.limit == pytest.approx(0.05 * 96)
    assert math.isnan(watch.judged['image_cosine'].limit)  # too early
    watch.check(1_000, {'health/image_cosine': 0.995})
    assert watch.judged['image_cosine'] == (0.995, 'above', 0.99)
    assert watch.judged['image_cosine'].bad
    assert watch.judged['rankme'] == judged  # as last measured

  def test_rising_loss_is_normal(self):
    watch = self.watch()
    for step in range(1_100, 3_000, 100):
      assert watch.check(step, HEALTHY | {'train/loss': step / 1_000}) == []

  @pytest.mark.parametrize(
    'rows',
    [
      (  # scenes
        (0, 3.76, 0.222, 0.922, math.nan, math.nan, math.nan),
        (60, 3.26, 0.189, 0.951, 0.163, 0.002, 0.908),
        (120, 6.58, 0.664, 0.371, 0.622, 0.281, 0.850),
        (240, 5.69, 0.652, 0.460, 0.593, 0.457, 0.941),
        (480, 5.43, 0.613, 0.525, 0.532, 0.437, 0.948),
      ),
      (  # CIFAR-10
        (0, 3.01, 0.140, 0.966, math.nan, math.nan, math.nan),
        (60, 2.38, 0.101, 0.985, 0.135, 0.002, 0.922),
        (120, 3.19, 0.271, 0.873, 0.205, 0.068, 0.922),
        (240, 4.78, 0.401, 0.662, 0.648, 0.235, 0.726),
        (420, 4.63, 0.358, 0.733, 0.608, 0.380, 0.826),
      ),
    ],
  )
  def test_healthy_runs_are_quiet(self, rows):
    """Figures measured on vit_micro; their warm-up took 100 steps."""
    watch = health.HealthWatch(feature_width=96, warmup_steps=100)
    for step, *values in rows:
      row = dict(zip(HEALTHY, values, strict=True))
      assert watch.check(step, row) == []
      # The same figures later in a run are no worse.
      if step > 100:
        assert watch.check(step + 1_000, row) == []

  def test_collapsed_run_is_noticed_at_once(self):
    """Figures measured with a momentum of 0 and a learning rate of 5e-3."""
    watch = health.HealthWatch(feature_width=96, warmup_steps=100)
    start = dict(zip(HEALTHY, (3.01, 0.1397, 0.966), strict=False))
    assert watch.check(0, start) == []
    collapsed = (1.295, 0.0261, 0.9991, 0.0028, 0.0001, 0.988)
    row = dict(zip(HEALTHY, collapsed, strict=True))
    assert len(watch.check(60, row)) == 2
    assert len(watch.check(600, row)) == 2  # two more figures are judged now

  def test_untrained_deep_encoder_is_quiet(self):
    watch = health.HealthWatch(feature_width=1280, warmup_steps=25_000)
    untrained = {'health/image_cosine': 0.997, 'health/rankme': 6.0}
    assert watch.check(0, untrained) == []
    assert watch.check(5_000, untrained) == []
    assert len(watch.check(30_000, untrained)) == 1

  def test_a_low_rank_that_is_high_for_the_width_is_quiet(self):
    watch = health.HealthWatch(feature_width=96, warmup_steps=0)
    assert watch.check(1_000, {'health/rankme': 60.0}) == []
    assert watch.check(2_000, {'health/rankme': 20.0}) == []

  def test_once_per_onset(self):
    watch = self.watch()
    bad = HEALTHY | {'health/target_variance': 0.001}
    assert len(watch.check(1_100, bad)) == 1
    assert watch.check(1_200, bad) == []
    watch.check(1_300, HEALTHY)  # trembles
    assert watch.check(1_400, bad) == []
    for step in range(1_500, 2_000, 100):
      watch.check(step, HEALTHY)
    assert len(watch.check(2_000, bad)) == 1

  def test_replayed_rows_are_remembered(self):
    watch = self.watch()
    watch.check(1_100, HEALTHY | {'health/feature_std': 0.001})
    resumed = self.watch()
    resumed.check(1_100, HEALTHY | {'health/feature_std': 0.001})
    assert resumed.check(1_200, {'health/feature_std': 0.001}) == []

  def test_missing_and_nan_are_not_judged(self):
    watch = self.watch()
    assert watch.check(1_100, {}) == []
    assert watch.check(1_200, dict.fromkeys(HEALTHY, math.nan)) == []
    assert watch.check(1_300, HEALTHY) == []


class TestFinalTable:
  def table(self, **changes):
    labels = ('count', 'shape')

    def results(accuracy, rankme):
      probed = {
        f'probe/{label}/{probe}': accuracy
        for label in labels
        for probe in ('knn', 'linear')
      }
      return probed | {'health/rankme': rankme}

    options = {
      'steps': 1_200,
      'loss': 0.14321,
      'images_per_second': 812.4,
      'chance': {'count': 0.334, 'shape': 0.17},
      'pixels': results(0.25, 0),
      'init': results(0.3, 3.8),
      'trained': results(0.61, 18.3),
      'checkpoint': 'runs/quickstart/checkpoints/1200',
      'pictures': 'runs/quickstart/*.png',
      'commands': [('look at the curves', 'tensorboard --logdir runs')],
    }
    return summary.final_table(**options | changes)

  def test_shows_everything(self):
    text = self.table()
    for part in (
      '1,200 steps',
      '812 images/s',
      '0.1432',
      '3.8 before training, 18.3 now',
      'runs/quickstart/checkpoints/1200',
      '# look at the curves',
      'tensorboard --logdir runs',
    ):
      assert part in text
    row = next(line for line in text.splitlines() if 'shape' in line)
    assert row.split() == ['shape', '17.0'] + 2 * ['25.0', '30.0', '61.0']

  def test_columns_align_within_80(self):
    lines = self.table().splitlines()
    header = next(line for line in lines if line.startswith('label'))
    rows = [line for line in lines if line.startswith(('count', 'shape'))]
    assert {len(line) for line in rows} == {len(header)}
    assert max(len(line) for line in lines) <= 80

  def test_without_evaluation(self):
    text = self.table(chance={}, pixels={}, init={}, trained={})
    assert 'RankMe' not in text
    assert 'k-NN' not in text
    assert 'Loss 0.1432' in text
