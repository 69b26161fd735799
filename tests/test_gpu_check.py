"""`benchmarks/gpu_check.py`, as far as a CPU can tell."""

import json
import subprocess
import sys

import gpu_attention
import gpu_check
import gpu_plan
import gpu_report
import gpu_speed
import gpu_tasks
import jax.numpy as jnp
import pytest
import tiny
from gpu_tasks import Row, Task

from ijepa_jax.models import attention

SHAPE = gpu_attention.Shape(6, 10, 2, 8, True)


@pytest.fixture(scope='module')
def names():
  """Of all tasks on a GPU."""
  processes = gpu_plan.plan(reference=tiny.ROOT)
  return [task.name for process in processes for task in process.tasks]


@pytest.mark.slow
def test_smoke_runs_every_path(tmp_path):
  file = tmp_path / 'gpu.json'
  done = subprocess.run(
    [
      sys.executable,
      tiny.ROOT / 'benchmarks' / 'gpu_check.py',
      '--smoke',
      f'--json={file}',
    ],
    env=tiny.environment(),
    stdout=subprocess.PIPE,
    text=True,
    check=True,
    timeout=540,
  )
  assert 'targets, for one H200' in done.stdout
  record = json.loads(file.read_text())
  rows = record['results']['gpu_check']['rows']
  for row in rows:
    on_gpus_only = ' cudnn ' in f'{row["name"]} '
    assert (row['status'] == gpu_tasks.SKIPPED) == on_gpus_only, row
  assert {row['status'] for row in rows} == {
    gpu_tasks.PASS,
    gpu_tasks.MEASURED,
    gpu_tasks.SKIPPED,
  }
  step = next(row for row in rows if row['name'].startswith('step '))
  assert step['values']['share_of_matrix_rate'] > 0


# --- Time ------------------------------------------------------------------


def test_what_does_not_fit_is_named(capsys):
  gpu_check.main(['--smoke', '--minutes=0.1'])
  printed = capsys.readouterr().out
  for process in gpu_plan.plan(smoke=True):
    for task in process.tasks:
      assert f'  {task.name}' in printed
  assert 'no time: takes about 8 s, 1 s left' in printed


def test_a_process_is_stopped_when_the_time_is_up(capsys, monkeypatch):
  monkeypatch.setattr(gpu_check, '_PROCESS', 0)
  gpu_check.main(['--smoke', '--minutes=0.1', '--only=matrix'])
  assert 'stopped, because the time was up' in capsys.readouterr().out


def test_the_important_half_fits_in_nine_minutes():
  processes = gpu_plan.plan()
  last = next(
    i
    for i, process in enumerate(processes)
    if process.tasks[0].name.startswith('start of vith14')
  )
  seconds = sum(
    gpu_check._PROCESS + sum(task.seconds for task in process.tasks)
    for process in processes[: last + 1]
  )
  assert seconds < 9 * 60 - gpu_check._MARGIN


def test_without_a_gpu_it_fails_and_says_so(capsys):
  with pytest.raises(SystemExit) as error:
    gpu_check.main(['--only=step vitb16 batch 128 xla'])
  assert error.value.code == 1
  printed = capsys.readouterr().out
  assert 'device  fail' in printed
  assert 'there is no GPU' in printed


# --- Tasks -----------------------------------------------------------------


def test_names_are_unique(names):
  assert len(set(names)) == len(names)


@pytest.mark.parametrize(
  ('message', 'status'),
  [
    ('RESOURCE_EXHAUSTED: Out of memory', gpu_tasks.NO_MEMORY),
    ('INTERNAL: no', gpu_tasks.FAIL),
  ],
)
def test_a_mistake_becomes_a_row(message, status):
  def run(earlier):
    raise RuntimeError(f'{message}\nsecond line')

  row = gpu_tasks.perform(Task('a', 0, run), {})
  assert (row.status, row.note) == (status, f'RuntimeError: {message}')


def test_attention_that_sees_the_padding_fails(monkeypatch):
  right = attention.attend

  def wrong(query, key, value, lengths, implementation):
    if query.dtype == jnp.bfloat16:
      lengths = None
    return right(query, key, value, lengths, implementation)

  monkeypatch.setattr(attention, 'attend', wrong)
  status, note, values = gpu_attention.check(SHAPE, 'xla', 3, {})
  assert status == gpu_tasks.FAIL
  assert 'gradient at the padding is not 0' in note
  assert values['key'] > values['tolerance']


def test_attention_that_is_refused_is_no_failure(monkeypatch):
  # On a CPU, JAX says of cuDNN that it is not there.
  monkeypatch.setattr(gpu_tasks, 'lacks_cudnn', lambda _: None)
  status, note, _ = gpu_attention.check(SHAPE, 'cudnn', 3, {})
  assert status == gpu_tasks.UNSUPPORTED
  assert 'cuDNN' in note


@pytest.mark.parametrize(
  ('script', 'status', 'note'),
  [
    (
      'print("step 1"); print(\'{"images_per_second": 5}\')',
      gpu_tasks.MEASURED,
      'images/s: 5',
    ),
    ('raise SystemExit(2)', gpu_tasks.UNSUPPORTED, 'exit code 2, no output'),
  ],
)
def test_reference(script, status, note):
  result = gpu_speed.reference([sys.executable, '-c', script], {})
  assert result[:2] == (status, note)


# --- Report ----------------------------------------------------------------


def test_targets_are_of_the_fastest_step(names):
  def step(speed, memory):
    return {
      'images_per_second': {'median': speed},
      'peak_memory_bytes': memory,
      'share_of_matrix_rate': 0.5,
      'host_ms': 1.0,
      'to_first_step_seconds': 50.0,
      'state': {
        'trained_bytes': 12,
        'trained_parameters': 1,
        'target_bytes': 4,
        'target_parameters': 1,
      },
    }

  measured = {
    'step vith14 batch 128 xla none': step(600.0, 70e9),
    'step vith14 batch 128 cudnn none': step(720.0, 90e9),
    'start of vith14 with the cache': {'to_first_step_seconds': 21.0},
    'reference, eager': {'images_per_second': 240.0},
    'reference, SDPA and torch.compile': {'images_per_second': 600.0},
  }
  assert set(measured) <= set(names)
  rows = {
    name: Row(name, gpu_tasks.MEASURED, '', values)
    for name, values in measured.items()
  }
  met = {x['target']: x['met'] for x in gpu_report.targets(rows)}
  assert met == {
    'ViT-H/14, images/s': True,
    'ViT-H/14, share of the matrix rate': False,
    'ViT-H/14 over the reference, eager': True,
    'ViT-H/14 over the reference, SDPA and torch.compile': False,
    'ViT-H/14, peak GB': False,
    'ViT-L/16, images/s': None,
    'ViT-B/16, images/s': None,
    'ViT-H/14, host ms per step': True,
    'ViT-H/14, first step after s': True,
    'the same with the cache': False,
    'bytes per trained parameter': True,
    'bytes per target parameter': True,
  }
