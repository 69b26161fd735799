"""The benchmark command: what it measures on a tiny config, and refuses."""

import json
import re
import shlex
import sys

import jax
import pytest
import tiny
from PIL import Image

from ijepa_jax import errors
from ijepa_jax.benchmark import (
  __main__,
  chart,
  checkpoints,
  compare,
  first_step,
  masks,
  panels,
  record,
  report,
  startup,
  step,
)
from ijepa_jax.benchmark.trial import Trial, name_of

CONFIG = [
  f'--config={tiny.ROOT / "tests" / "tiny_config.py"}',
  *(f'--config.{name}={value}' for name, value in tiny.FIELDS.items()),
]


@pytest.fixture(scope='module')
def trial():
  return Trial(tiny.config())


@pytest.fixture(scope='module')
def step_result(trial):
  return step.measure_trial(trial, warmup=1, steps=4)


def refusal(*arguments):
  with pytest.raises(errors.UserError) as caught:
    __main__.main(arguments)
  message = str(caught.value)
  assert '\n' not in message
  return message


def printing(text):
  """A command whose last line is `text`."""
  return shlex.join([sys.executable, '-c', f'print({text!r})'])


def test_step_says_what_a_step_does(step_result):
  result = step_result
  rate = result['images_per_second']
  assert rate['count'] == 4
  low, high = rate['quartiles']
  assert 0 < low <= rate['median'] <= high
  useful = result['model_gflops_per_image'] * rate['median'] / 1000
  assert result['model_tflops_per_second'] == pytest.approx(useful)
  assert result['utilisation'] is None  # nobody knows the peak of a CPU
  for tokens in result['tokens'].values():
    assert 0 < tokens['valid'] <= tokens['padded']
  assert result['peak_memory_bytes'] > 0
  assert 'XLA' in result['peak_memory_source']
  assert result['xla_cost']['flops'] > 0
  for host in result['host_seconds_per_step'].values():
    assert host['median'] > 0
  state = result['state']  # values and two moments; positions have none
  assert 11 < state['trained_bytes'] / state['trained_parameters'] <= 12.1
  assert state['target_bytes'] == 4 * state['target_parameters']
  text = step.table(result)
  assert 'images/s' in text
  assert 'vit_micro/4 at 24, batch 8' in text


def test_a_trial_goes_on_training(trial):
  before = int(trial.state.step)
  timed = trial.run(warmup=1, steps=2)
  assert int(trial.state.step) == before + 3
  assert [len(values) for values in timed] == [2, 2, 2]
  assert trial.run(until=lambda: True).steps == []
  assert len(trial.run(seconds=0.0).steps) >= 3


def test_masks_of_a_config():
  result = masks.measure(tiny.config(), repeats=3, samples=16)
  (case,) = result['cases']
  assert case['context_tokens'] == 14
  assert case['batch_size'] == 8
  assert case['quartiles'][0] <= case['median'] <= case['best']
  assert '24/4' in masks.table(result)


def test_masks_against_another_program(capsys):
  said = '{"samples_per_second": 2.0}'
  __main__.main(['masks', *CONFIG, '--pairs=1', f'--vs={printing(said)}'])
  assert 'comparison, samples per second' in capsys.readouterr().out


def test_published_masks_without_a_config(monkeypatch):
  monkeypatch.setattr(masks, '_GEOMETRIES', ((96, 8), (32, 4)))
  result = masks.measure(None, repeats=1, samples=16)
  geometries = {(c['image_size'], c['patch_size']) for c in result['cases']}
  assert geometries == {(96, 8), (32, 4)}
  assert len(result['cases']) == 8  # two cuts, two batch sizes


def test_checkpoint_says_what_a_save_costs(trial, tmp_path):
  result = checkpoints.measure(trial, tmp_path, saves=1, steps=3)
  state = step_bytes(trial)
  assert result['bytes'] > 0.5 * state  # compressed
  assert result['blocked_seconds']['median'] > 0
  on_disk = result['on_disk_seconds']['median']
  assert result['blocked_seconds']['median'] <= on_disk
  assert 0 < result['lost_share']['median'] < 1
  assert list(tmp_path.iterdir()) == []  # nothing stays behind
  assert 'every 1,000 steps' in checkpoints.table(result)


def step_bytes(trial):
  return sum(leaf.nbytes for leaf in jax.tree.leaves(trial.state))


def test_a_start_in_its_stages(monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['first_step', *CONFIG])
  first_step.main()
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  seconds = result['seconds']
  assert list(seconds)[-3:] == ['compile', 'first batch', 'first step']
  assert all(value >= 0 for value in seconds.values())


@pytest.mark.slow
def test_startup_with_and_without_the_compilation_cache():
  result = startup.measure(CONFIG, repeats=1)
  assert list(result['import']) == [
    'ijepa_jax',
    'ijepa_jax.encoder',
    'ijepa_jax.train',
  ]
  from_cache = {
    cache: start['step_from_cache']
    for cache, start in result['first_step'].items()
  }
  assert from_cache == {'off': False, 'empty': False, 'filled': True}
  assert 'jax' in result['import_slowest']
  assert 'total' in startup.table(result)


def test_a_start_that_fails_is_one_line():
  with pytest.raises(errors.UserError, match='first step failed: --config=no'):
    startup._first_step(['--config=nothing.py'], None)


def test_pairs_are_timed_in_turn():
  said = '{"images_per_second": 2.0, "torch": "2.13"}'
  speeds = iter([3.0, 4.0, 8.0])
  result = compare.measure(lambda: next(speeds), printing(said), pairs=3)
  assert [pair['ratio'] for pair in result['pairs']] == [1.5, 2.0, 4.0]
  assert result['ratio']['median'] == 2.0
  assert result['pairs'][0]['said']['torch'] == '2.13'
  assert '1.50' in compare.table(result)


def test_our_own_records_can_be_compared_with():
  speed = {'images_per_second': {'median': 2.0}}
  said = {'command': '', 'results': {'step': speed}}
  result = compare.measure(lambda: 3.0, printing(json.dumps(said)), pairs=1)
  assert result['ratio']['median'] == 1.5


@pytest.mark.parametrize(
  ('command', 'message'),
  [
    (f'{sys.executable} -c "print(5)"', 'expected as its last line a JSON'),
    (f'{sys.executable} -c "pass"', 'expected as its last line a JSON'),
    (f'{sys.executable} -c "import nothing"', "code 1: .*No module named 'not"),
    ('no-such-program --fast', "no such program: 'no-such-program'"),
    ('an "open quote', 'No closing quotation'),
  ],
)
def test_a_comparison_that_fails_is_one_line(command, message):
  with pytest.raises(errors.UserError, match=message) as caught:
    compare.measure(lambda: 1.0, command, pairs=1)
  assert '\n' not in str(caught.value)


def test_the_command_writes_a_record(tmp_path, capsys):
  path = tmp_path / 'speed.json'
  large = '--config.batch_size=2048'  # small batches take longer
  __main__.main(['masks', *CONFIG, large, f'--json={path}'])
  made = json.loads(path.read_text())
  assert list(made) == ['command', 'machine', 'versions', 'config', 'results']
  assert made['command'].startswith('python -m ijepa_jax.benchmark masks')
  assert made['config']['model']['variant'] == 'vit_micro'
  assert {'jax', 'numpy', 'pillow', 'grain'} <= made['versions'].keys()
  assert made['machine']['cores'] >= 1
  assert 'samples per second' in capsys.readouterr().out
  __main__.main(['masks', *CONFIG, large, '--json=-'])
  last = capsys.readouterr().out.splitlines()[-1]
  assert json.loads(last)['results']['masks']['cases']


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['stop'], "'stop': expected one of .*; nearest: step"),
    ([], 'expected one of step, input, masks, startup, checkpoint, all$'),
    (['step'], '--config is missing'),
    (['step', '--config=nothing.py'], '--config=nothing.py: no such file'),
    (['step', *CONFIG, '--config.batch=8'], "unknown field 'batch'"),
    (['step', *CONFIG, '--jsn=x'], 'unknown flag --jsn; nearest: --json'),
    (['step', *CONFIG, '--steps=0'], '0 is not at least 1'),
    (['step', *CONFIG, '--json=nowhere/x.json'], 'no such directory'),
    (['step', *CONFIG, '--vs=no-such-program'], 'no such program'),
    (['input', *CONFIG, '--vs=true'], '--vs: expected the kind step or masks'),
    (['masks', '--vs=true'], '--config is missing'),
    (['step', *CONFIG, '--dir=.'], '--dir: expected checkpoint'),
    (['checkpoint', *CONFIG, '--dir=nowhere'], 'no such directory'),
    (
      ['all', *CONFIG, '--config.data.source=folder', '--config.data.path=no'],
      'data.path',
    ),
  ],
)
def test_refusals(arguments, message):
  assert re.search(message, refusal(*arguments))


def test_a_chart_of_records(trial, step_result, tmp_path):
  speeds = iter([3.0, 4.0])
  said = '{"images_per_second": 2.0}'
  results = {
    'step': step_result,
    'comparison': compare.measure(
      lambda: next(speeds), printing(said), pairs=2
    ),
    'masks': masks.measure(tiny.config(), repeats=2, samples=16),
    'checkpoint': checkpoints.measure(trial, saves=1, steps=3),
    'startup': {
      'import': {'ijepa_jax': 0.1},
      'first_step': {
        'off': {'name': 'tiny', 'seconds': {'trace': 2.0, 'compile': 7.0}}
      },
    },
  }
  file, picture = tmp_path / 'speed.json', tmp_path / 'speed.png'
  record.write(file, record.make(['step'], None, results))
  (tmp_path / 'other.json').write_text('{"rows": []}')  # of another program
  chart.main([str(tmp_path), f'--out={picture}'])
  assert Image.open(picture).size > (1500, 1000)


def test_a_step_says_in_how_many_parts_its_batch_is():
  mesh = jax.make_mesh((1,), ('data',), devices=jax.devices()[:1])
  whole, parts = tiny.config(), tiny.config(optim__accumulate=2)
  assert f'batch {whole.batch_size}, ' in name_of(whole, mesh)
  assert f'batch {whole.batch_size} in 2 parts, ' in name_of(parts, mesh)


def test_a_step_says_what_was_preloaded(step_result, monkeypatch):
  monkeypatch.setenv('LD_PRELOAD', '/lib/liballocator.so.4:/lib/libother.so')
  made = record.make(['step'], None, {'step': step_result})
  speed, _ = panels.make_panels([made])
  assert ', liballocator, libother, ' in speed.bars[0].label


@pytest.mark.parametrize(
  ('text', 'message'),
  [('{', 'no JSON'), ('[]', 'expected what'), ('{"results": {}}', 'nothing')],
)
def test_a_chart_of_something_else_is_refused(tmp_path, text, message):
  file = tmp_path / 'other.json'
  file.write_text(text)
  with pytest.raises(errors.UserError, match=message):
    chart.main([str(file), f'--out={tmp_path / "x.png"}'])


def test_units():
  assert report.seconds(2.314) == '2.31 s'
  assert report.seconds(0.0142) == '14.2 ms'
  assert report.seconds(87e-6) == '87 us'
  assert report.size(14.8e6) == '14.8 MB'
  assert report.number(641_623.4) == '641,623'
  assert report.columns([('a', '1'), ('bb', '12')]) == '  a    1\n  bb  12'
  assert record.spread([5.0])['quartiles'] == [5.0, 5.0]
