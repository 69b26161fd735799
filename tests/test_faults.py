"""Signals, kills and bad input, on the real command in its own process."""

import json
import random
import signal
import subprocess
import time

import numpy as np
import pytest
import tiny
from PIL import Image

STEPS = 40


def start(workdir, **overrides):
  return subprocess.Popen(
    tiny.command(workdir, **overrides),
    env=tiny.environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def wait_for(condition, seconds=120):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, 'did not happen in time'
    time.sleep(0.01)


def has_steps(workdir, count):
  file = workdir / 'metrics.jsonl'
  return file.exists() and file.read_text().count('train/loss') >= count


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('uninterrupted')
  result = tiny.run(workdir, total_steps=STEPS)
  assert result.returncode == 0, result.stderr
  return workdir


def kill(workdir, when, rng):
  """Starts the run and kills it at a moment of the given kind."""
  seen = len(tiny.rows(workdir)) if has_steps(workdir, 1) else 0
  folder = workdir / 'checkpoints'
  stale = set(folder.glob('*tmp*'))
  process = start(workdir, total_steps=STEPS, data__workers=1)
  if when == 'save':
    wait_for(lambda: set(folder.glob('*.orbax-checkpoint-tmp*')) - stale)
  elif when == 'start':
    time.sleep(rng.uniform(0, 8))
  else:
    aim = min(seen + rng.randrange(1, 6), STEPS - 1)
    wait_for(lambda: has_steps(workdir, aim))
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert process.returncode == -signal.SIGKILL


_SLOW = pytest.mark.slow


@pytest.mark.parametrize(
  ('seed', 'moments'),
  [
    (0, ('step', 'step', 'save', 'step', 'step')),
    *(
      pytest.param(seed, ('save', 'start', 'step', 'save', 'step'), marks=_SLOW)
      for seed in (1, 2, 3)
    ),
  ],
)
def test_five_kills_do_not_change_the_result(
  tmp_path, uninterrupted, seed, moments
):
  rng = random.Random(seed)
  for when in moments:
    kill(tmp_path, when, rng)
  # On a slow machine all kills may come before the first save has ended.
  saved = [p for p in (tmp_path / 'checkpoints').glob('*') if p.name.isdigit()]
  result = tiny.run(tmp_path, total_steps=STEPS, data__workers=1)
  assert result.returncode == 0, result.stderr
  assert ('resuming from' in result.stderr) == bool(saved)
  assert not list((tmp_path / 'checkpoints').glob('*tmp*'))
  tiny.assert_same_run(tmp_path, uninterrupted, STEPS)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_continues(tmp_path, uninterrupted, number):
  process = start(tmp_path, total_steps=STEPS, data__workers=1)
  wait_for(lambda: has_steps(tmp_path, 3))
  process.send_signal(number)
  output, _ = process.communicate(timeout=120)
  assert process.returncode == 75, output
  last = output.strip().splitlines()[-1]
  assert last.startswith(f'error: stopped by {number.name} at step'), output
  assert 'Traceback' not in output
  step = max(int(path.name) for path in (tmp_path / 'checkpoints').iterdir())
  assert f'at step {step},' in last
  result = tiny.run(tmp_path, total_steps=STEPS)
  assert result.returncode == 0, result.stderr
  tiny.assert_same_run(tmp_path, uninterrupted, STEPS)


def test_training_imports_neither_tensorflow_nor_torch(tmp_path):
  code = (
    'import sys\n'
    'from ijepa_jax import main\n'
    'main.main()\n'
    'heavy = {"tensorflow", "torch", "transformers"} & set(sys.modules)\n'
    'assert not heavy, heavy\n'
  )
  command = tiny.command(tmp_path, total_steps=2, log__tensorboard=True)
  result = subprocess.run(
    [command[0], '-c', code, *command[3:]],
    env=tiny.environment(),
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr


def make_folder(folder, images=40):
  rng = np.random.default_rng(0)
  for i in range(images):
    path = folder / f'class{i % 2}' / f'{i:03}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 255, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(path)
  return folder


def test_a_broken_record_is_replaced_and_named_once(tmp_path):
  folder = make_folder(tmp_path / 'images')
  (folder / 'class0' / '004.png').write_bytes(b'not an image')
  result = tiny.run(
    tmp_path / 'run',
    data__source='folder',
    data__path=folder,
    total_steps=12,
    eval__split='none',
    eval__every=6,
  )
  assert result.returncode == 0, result.stderr
  assert result.stderr.count('broken record') == 1
  (row,) = map(
    json.loads,
    (tmp_path / 'run' / 'bad_records.jsonl').read_text().splitlines(),
  )
  assert row['id'].endswith('004.png')


def test_too_many_broken_records_stop_the_run(tmp_path):
  folder = make_folder(tmp_path / 'images')
  for path in sorted(folder.rglob('*.png'))[::5]:
    path.write_bytes(b'')
  result = tiny.run(
    tmp_path / 'run',
    data__source='folder',
    data__path=folder,
    data__max_bad_share=0.001,
    total_steps=12,
  )
  assert result.returncode == 3, result.stderr
  last = result.stderr.strip().splitlines()[-1]
  assert 'data.max_bad_share' in last
  assert 'Traceback' not in result.stderr


def test_a_data_set_of_broken_records_stops_the_run(tmp_path):
  folder = make_folder(tmp_path / 'images')
  for path in folder.rglob('*.png'):
    path.write_bytes(b'')
  result = tiny.run(
    tmp_path / 'run',
    data__source='folder',
    data__path=folder,
    data__workers=1,
    total_steps=12,
  )
  assert result.returncode == 3, result.stderr
  assert 'Traceback' not in result.stderr
