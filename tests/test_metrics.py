"""Writers of metrics: JSON lines, TensorBoard, Weights & Biases."""

import importlib.util
import json
import math
import os
import pathlib
import struct
import subprocess
import sys
import time
import types

import pytest

from ijepa_jax.errors import StorageError, UserError
from ijepa_jax.metrics import background, writers


def make_writer(workdir, **kwargs):
  options = {
    'tensorboard': False,
    'wandb': False,
    'config': {'seed': 0},
    'resume_step': None,
  }
  return writers.MetricWriter(workdir, **options | kwargs)


def steps_of(workdir):
  return [
    row['step'] for row in writers.read_metrics(workdir / 'metrics.jsonl')
  ]


class TestJsonLines:
  def test_rows_come_back(self, tmp_path):
    writer = make_writer(tmp_path / 'new' / 'run')
    before = time.time()
    writer.write(0, {'train/loss': 0.5})
    writer.write(50, {'train/loss': 0.25, 'health/rankme': 3})
    rows = writers.read_metrics(tmp_path / 'new' / 'run' / 'metrics.jsonl')
    writer.close()
    assert [row['step'] for row in rows] == [0, 50]
    assert rows[1]['train/loss'] == 0.25
    assert rows[1]['health/rankme'] == 3
    assert abs(rows[0]['time'] - before) < 10

  def test_what_is_not_finite_stays_valid_json(self, tmp_path):
    writer = make_writer(tmp_path)
    writer.write(1, {'a': math.nan, 'b': math.inf, 'c': 1.0})
    writer.close()

    def refuse(constant):
      raise AssertionError(f'{constant} is not JSON')

    line = (tmp_path / 'metrics.jsonl').read_text()
    row = json.loads(line, parse_constant=refuse)
    assert row['a'] is None
    assert row['b'] is None
    assert math.isnan(writers.read_metrics(tmp_path / 'metrics.jsonl')[0]['a'])

  def test_half_written_line_is_dropped(self, tmp_path):
    writer = make_writer(tmp_path)
    writer.write(1, {'a': 1.0})
    writer.close()
    with open(tmp_path / 'metrics.jsonl', 'a') as file:
      file.write('{"step": 2, "ti')
    assert steps_of(tmp_path) == [1]
    writer = make_writer(tmp_path, resume_step=1)
    writer.write(2, {'a': 2.0})
    writer.close()
    assert steps_of(tmp_path) == [1, 2]

  @pytest.mark.parametrize('line', ['{"step": 2, "ti', '[1]', '{"a": 1}'])
  def test_bad_line_in_the_middle_is_named(self, tmp_path, line):
    path = tmp_path / 'metrics.jsonl'
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(UserError, match=r'metrics\.jsonl line 2'):
      writers.read_metrics(path)

  def test_missing_file_is_named(self, tmp_path):
    with pytest.raises(UserError, match=r'metrics\.jsonl'):
      writers.read_metrics(tmp_path / 'metrics.jsonl')

  @pytest.mark.parametrize(
    ('resume_step', 'kept'),
    [(None, []), (0, [0]), (100, [0, 50, 100]), (999, [0, 50, 100, 150])],
  )
  def test_resume_drops_rows_that_come_again(self, tmp_path, resume_step, kept):
    writer = make_writer(tmp_path)
    for step in (0, 50, 100, 150):
      writer.write(step, {'a': step})
    writer.close()
    make_writer(tmp_path, resume_step=resume_step).close()
    assert steps_of(tmp_path) == kept
    assert os.listdir(tmp_path) == ['metrics.jsonl']

  def test_killed_run_loses_no_row(self, tmp_path):
    code = f"""
import os, signal
from ijepa_jax.metrics.writers import MetricWriter
writer = MetricWriter({str(tmp_path)!r}, tensorboard=False, wandb=False,
                      config={{}}, resume_step=None)
for step in range(20):
  writer.write(step, {{'a': 1.0}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    process = subprocess.run([sys.executable, '-c', code], check=False)
    assert process.returncode == -9
    assert steps_of(tmp_path) == list(range(20))

  @pytest.mark.skipif(
    not pathlib.Path('/dev/full').exists(), reason='needs /dev/full'
  )
  def test_full_disk_is_an_error(self, tmp_path):
    (tmp_path / 'metrics.jsonl').symlink_to('/dev/full')
    writer = make_writer(tmp_path)
    with pytest.raises(UserError, match='No space left') as error:
      writer.write(1, {'a': 1.0})
    assert 'metrics.jsonl' in str(error.value)
    writer.close()  # and does not fail again


class TestTensorBoard:
  def read(self, workdir):
    """Events of all files, by TFRecord framing alone."""
    from tensorboardX.proto import event_pb2

    events = []
    for path in sorted((workdir / 'tensorboard').iterdir()):
      data = path.read_bytes()
      while data:
        (length,) = struct.unpack('<Q', data[:8])
        events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events

  def test_row_is_on_disk_at_once(self, tmp_path):
    writer = make_writer(tmp_path, tensorboard=True)
    writer.write(50, {'train/loss': 0.25, 'train/lr': 0.5})
    event = self.read(tmp_path)[-1]
    writer.close()
    assert event.step == 50
    values = {value.tag: value.simple_value for value in event.summary.value}
    assert values == {'train/loss': 0.25, 'train/lr': 0.5}

  def test_resume_purges_later_steps(self, tmp_path):
    make_writer(tmp_path, tensorboard=True).close()
    make_writer(tmp_path, tensorboard=True, resume_step=100).close()
    starts = [
      event.step
      for event in self.read(tmp_path)
      if event.HasField('session_log')
    ]
    assert starts == [0, 101]

  def test_torch_is_not_imported(self, tmp_path):
    """The tensorboardX package imports torch wherever it is installed."""
    fake = tmp_path / 'site' / 'torch'
    fake.mkdir(parents=True)
    (fake / '__init__.py').write_text('')
    code = f"""
import sys
from ijepa_jax.metrics.writers import MetricWriter
MetricWriter({str(tmp_path / 'run')!r}, tensorboard=True, wandb=False,
             config={{}}, resume_step=None).close()
assert 'torch' not in sys.modules and 'tensorflow' not in sys.modules
import torch  # still possible afterwards
"""
    path = os.pathsep.join([str(tmp_path / 'site'), *filter(None, sys.path)])
    subprocess.run(
      [sys.executable, '-c', code],
      check=True,
      env=os.environ | {'PYTHONPATH': path},
    )


class TestWandb:
  def test_missing_package_is_an_error(self, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(UserError, match='pip install wandb'):
      make_writer(tmp_path, wandb=True)

  def test_resumed_run_keeps_its_id(self, tmp_path, monkeypatch):
    calls, rows = [], []

    def init(**options):
      calls.append(options)
      return types.SimpleNamespace(
        log=lambda values, step: rows.append((step, values)),
        finish=lambda: None,
      )

    stub = types.SimpleNamespace(init=init, Error=RuntimeError)
    monkeypatch.setitem(sys.modules, 'wandb', stub)
    writer = make_writer(tmp_path, wandb=True)
    writer.write(50, {'a': 1.0})
    writer.close()
    make_writer(tmp_path, wandb=True, resume_step=50).close()
    assert rows == [(50, {'a': 1.0})]
    assert calls[0]['config'] == {'seed': 0}
    assert calls[0]['id'] == calls[1]['id']
    assert calls[0]['resume'] == 'allow'

  @pytest.mark.skipif(
    importlib.util.find_spec('wandb') is None, reason='wandb is an extra'
  )
  def test_the_real_one_offline(self, tmp_path, monkeypatch):
    monkeypatch.setenv('WANDB_MODE', 'offline')
    writer = make_writer(tmp_path, wandb=True)
    writer.write(50, {'a': 1.0})
    writer.close()
    assert list((tmp_path / 'wandb').glob('offline-run-*'))


class TestBackgroundWriter:
  def test_rows_are_in_order_and_on_disk_after_flush(self, tmp_path):
    writer = background.BackgroundWriter(make_writer(tmp_path))
    for step in range(20):
      writer.write(step, {'a': step})
    writer.flush()
    assert steps_of(tmp_path) == list(range(20))
    writer.close()

  @pytest.mark.skipif(
    not pathlib.Path('/dev/full').exists(), reason='needs /dev/full'
  )
  def test_an_error_comes_at_a_later_call(self, tmp_path):
    (tmp_path / 'metrics.jsonl').symlink_to('/dev/full')
    writer = background.BackgroundWriter(make_writer(tmp_path))
    writer.write(1, {'a': 1.0})
    with pytest.raises(StorageError, match='No space left'):
      writer.flush()
    writer.close()
