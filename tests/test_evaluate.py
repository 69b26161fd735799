"""The command: `python -m ijepa_jax.evaluate`."""

import json
import subprocess
import sys

import cluster
import numpy as np
import pytest
import small_weights
import tiny
from PIL import Image

import ijepa_jax
from ijepa_jax import errors, evaluate, sharding, train_step
from ijepa_jax.config import fields
from ijepa_jax.data import scenes, transforms
from ijepa_jax.evaluation import extraction, feature_store, labelled, probes
from ijepa_jax.evaluation.tasks import ridge
from ijepa_jax.evaluation.wanted import Wanted
from ijepa_jax.prepare import __main__ as prepare


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  path = tmp_path_factory.mktemp('weights') / 'encoder'
  return small_weights.write(small_weights.single(), path, 'flax')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Two classes, of which one is darker; a broken file; no split folders."""
  path = tmp_path_factory.mktemp('images')
  rng = np.random.default_rng(0)
  for label, low in (('dark', 0), ('light', 150)):
    (path / label).mkdir()
    for number in range(20):
      pixels = low + rng.integers(0, 100, (16, 16, 3))
      image = Image.fromarray(pixels.astype(np.uint8))
      image.save(path / label / f'{number:02}.png')
  (path / 'dark' / '07.png').write_bytes(b'not an image')
  return path


def run(checkpoint, data, out, *arguments):
  """Runs the command with a cache of its own; returns results.json."""
  evaluate.main(
    [
      f'--checkpoint={checkpoint}',
      f'--data={data}',
      f'--out={out}',
      f'--cache={out}_cache',
      '--batch-size=2',
      *arguments,
    ]
  )
  return json.loads((out / 'results.json').read_text())


def test_tasks_add_up_and_features_are_used_again(
  checkpoint, folder, tmp_path, capsys
):
  out = tmp_path / 'out'
  first = run(checkpoint, folder, out, '--tasks=knn', '--knn.k=3')
  said = capsys.readouterr()
  assert '1 broken of 32 records left out: dark/07.png' in said.err
  assert 'used again' not in said.err
  assert 'chance' in said.out
  (result,) = first['results']
  assert result['task'] == 'knn'
  assert result['low'] < result['value'] <= result['high']
  assert None not in (result['pixels'], result['init'])
  assert result['details']['k'] == 3
  assert first['images']['train']['used'] == 31
  assert first['unseen'] == {}
  assert 'lacks' not in said.err
  assert first['images']['train']['broken'][0][0] == 'dark/07.png'

  # The same encoder, whatever the user calls it.
  second = run(f'{checkpoint}/', folder, out, '--tasks=ridge')
  assert 'used again' in capsys.readouterr().err
  assert [row['task'] for row in second['results']] == ['knn', 'ridge']
  assert second['results'][0] == result
  # Brightness is all that there is to see, and a linear probe sees it.
  ridge = second['results'][1]
  assert ridge['pixels'] == 1.0
  assert ridge['details']['pixels']['held-out top1'] == 1.0
  assert ridge['details']['chosen']['penalty'] in probes.PENALTIES
  assert '--tasks=knn' in second['tasks']['knn']['command']
  assert '| ridge | label |' in (out / 'results.md').read_text()


def test_what_was_measured_is_shown_when_a_later_task_fails(
  checkpoint, folder, tmp_path, capsys, monkeypatch
):
  def fail(context):
    raise errors.DataError('gone')

  monkeypatch.setattr(ridge, 'run', fail)
  monkeypatch.setenv('HOME', str(tmp_path))
  options = '--out=~/out', '--tasks=knn,ridge', '--baselines=none'
  with pytest.raises(errors.DataError, match='gone'):
    evaluate.main(
      [f'--checkpoint={checkpoint}', f'--data={folder}', '--no-cache', *options]
    )
  assert 'top1 %' in capsys.readouterr().out
  assert (tmp_path / 'out' / 'results.json').exists()


def test_test_images_of_classes_that_train_lacks_are_told_once(
  checkpoint, tmp_path, capsys
):
  rng = np.random.default_rng(0)
  files = [
    f'{split}/{label}/{k}'
    for split, labels in (('train', 'ac'), ('val', 'abcd'))
    for label in labels
    for k in range(4)
  ]
  for file in files:
    path = tmp_path / 'images' / f'{file}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(path)
  found = run(
    checkpoint,
    tmp_path / 'images',
    tmp_path / 'out',
    '--tasks=knn,ridge,logistic',
  )
  line = (
    'label: classes that train lacks (1, 3): 8 of 16 test images, which count '
    'as wrong'
  )
  assert capsys.readouterr().err.splitlines().count(line) == 1
  assert found['unseen'] == {'label': {'images': 8, 'classes': [1, 3]}}
  assert max(row['value'] for row in found['results']) <= 0.5


def test_help_lists_tasks_and_their_options(capsys):
  with pytest.raises(SystemExit) as caught:
    evaluate.main(['--help'])
  assert caught.value.code == 0
  said = capsys.readouterr().out
  for words in ('weighted k nearest', '--knn.k', '--lowshot.subsets', '1%,10%'):
    assert words in said


def test_a_value_that_looks_like_an_option_is_none():
  evaluate._require_used(['--out', 'knn.k', '--ridge'], ['ridge'])
  with pytest.raises(errors.UserError, match=r'--knn\.k: knn is not among'):
    evaluate._require_used(['--knn.k', '3'], ['ridge'])


def test_another_seed_is_another_evaluation(checkpoint, folder, tmp_path):
  out = tmp_path / 'out'
  arguments = ('--tasks=ridge', '--baselines=none')
  run(checkpoint, folder, out, *arguments)
  with pytest.raises(errors.UserError, match='results of another data'):
    run(checkpoint, folder, out, *arguments, '--seed=1')


def test_features_are_those_of_the_encoder_and_every_device_has_its_part(
  checkpoint, tmp_path
):
  out = tmp_path / 'out'
  run(
    checkpoint,
    'scenes',
    out,
    '--tasks=ridge',
    '--labels=color',
    '--baselines=none',
    '--image-size=16',
    '--max-train=21',
    '--max-test=5',
  )
  stores = {}
  for meta in (tmp_path / 'out_cache').glob('*/meta.json'):
    shape = json.loads(meta.read_text())['shape']
    rows = np.fromfile(meta.parent / 'rows', np.float32).reshape(shape)
    records = np.load(meta.parent / 'labels.npz')['records']
    stores[len(rows)] = rows, records
  rows, records = stores[21]
  encoder = ijepa_jax.load_encoder(str(checkpoint), image_size=16)
  source = scenes.ScenesSource('train', 16)
  crop = transforms.EvalTransform(16, encoder.crop)
  rng = np.random.default_rng(0)
  images = [transforms.apply(source[k]['image'], crop, rng) for k in records]
  wanted = encoder.layers(train_step.normalise(np.stack(images)), (0, 1, 2))
  assert rows.shape == (21, 3, 44)
  for layer, tokens in enumerate(wanted):
    np.testing.assert_allclose(
      rows[:, layer], tokens.mean(1), rtol=1e-4, atol=1e-5
    )


def test_pixels_of_patches_are_compiled_once_for_both_splits(
  tmp_path, monkeypatch
):
  traced = []
  patchify = extraction.vit.patchify
  monkeypatch.setattr(
    extraction.vit,
    'patchify',
    lambda *arguments: (traced.append(arguments), patchify(*arguments))[1],
  )
  splits = labelled.open_splits(
    labelled.Request('scenes', None, None, 20, 10, image_size=16, seed=0)
  )
  mesh = sharding.make_mesh(fields.defaults())
  store = feature_store.Store(str(tmp_path))
  extractor = extraction.Extractor(mesh, 2, store, print)
  wanted = Wanted((-1,), pool=False)
  for split in splits:
    found = extractor.pixel_features(16, 1.0, 4, split, wanted)
    assert found.rows.shape == (len(split), 1, 16, 48)
  assert len(traced) == 1


@pytest.mark.slow
def test_every_protocol_runs_and_the_same_seed_gives_the_same_numbers(
  checkpoint, tmp_path
):
  arguments = (
    '--tasks=all',
    '--labels=color,count',
    '--image-size=16',
    '--max-train=200',
    '--max-test=40',
    '--linear-paper.epochs=2',
    '--linear-paper.views=2',
    '--linear-dinov2.epochs=2',
    '--attentive.epochs=1',
  )
  once, again = (
    run(checkpoint, 'scenes', tmp_path / name, *arguments)['results']
    for name in ('once', 'again')
  )
  assert once == again
  assert {row['task'] for row in once} >= {
    'knn',
    'ridge',
    'logistic',
    'linear-paper',
    'linear-dinov2',
    'attentive',
    'robustness',
  }
  for row in once:
    assert row['low'] <= row['value'] <= row['high']
    assert None not in (row['pixels'], row['init'])


@pytest.mark.slow
def test_two_processes_measure_what_one_does(checkpoint, folder, tmp_path):
  def command(name):
    return [
      *(sys.executable, '-m', 'ijepa_jax.evaluate'),
      f'--checkpoint={checkpoint}',
      f'--data={folder}',
      f'--out={tmp_path / name}',
      '--no-cache',
      '--tasks=knn,ridge',
      '--batch-size=3',
    ]

  workdir = tmp_path / 'two'
  with cluster.Cluster(workdir, command=command('two')) as both:
    for process in both.processes:
      assert process.wait(150) == 0, both.log(0)
  subprocess.run(command('one'), env=tiny.environment(), check=True)
  one, two = (
    json.loads((tmp_path / name / 'results.json').read_text())
    for name in ('one', 'two')
  )
  assert one['results'] == two['results']
  assert one['images'] == two['images']


def test_shards_are_recognised_and_have_splits(checkpoint, folder, tmp_path):
  shards = tmp_path / 'shards'
  for split in ('train', 'val'):
    prepare.main([str(folder), str(shards), f'--split={split}', '--workers=1'])
  found = run(
    checkpoint,
    shards,
    tmp_path / 'out',
    '--tasks=ridge',
    '--baselines=none',
    '--max-test=8',
  )
  assert found['data']['test']['split'] == 'val'
  assert found['images']['train']['used'] == 39  # the broken file is not there
  assert found['images']['test']['used'] == 8


@pytest.mark.parametrize(
  ('data', 'arguments', 'message'),
  [
    ('scenes', ('--tasks=knm',), "'knm' is not one of .* nearest: knn"),
    ('scene', (), "neither a path nor .*'scenes'"),
    ('scenes', (), '--image-size=12: scenes needs at least 16'),
    (
      'scenes',
      ('--image-size=16', '--test-split=dev'),
      '--test-split=dev: .* train, test',
    ),
    (
      'scenes',
      ('--image-size=16', '--labels=hue'),
      "'hue' is not one of count",
    ),
    ('scenes', ('--baselines=noise',), "'noise' is not one of"),
    ('scenes', ('--max-train=0',), 'is not at least 1'),
    ('FOLDER', ('--max-train=1',), '1 of the .* 2 at least'),
    ('scenes', ('--linear-paper.views=-1',), 'below 0'),
    ('scenes', ('--seed=-1',), 'below 0'),
    ('scenes', ('--tasks=knn', '--ridge.k=3'), 'unrecognized'),
    ('scenes', ('--tasks=ridge', '--knn.k=3'), '--knn.k: knn is not among'),
    ('scenes', ('--no-cache',), 'not allowed with'),
    ('FOLDER', ('--data-dir=DIR',), '--data-dir=DIR: only tfds'),
    (
      'scenes',
      ('--tasks=lowshot', '--lowshot.subsets=half'),
      "'half' is neither",
    ),
    (
      'scenes',
      ('--tasks=lowshot', '--lowshot.methods=knn'),
      "'knn' is not one of logistic, finetune",
    ),
    ('FOLDER/dark', (), 'has no labels'),
    (
      'scenes',
      ('--max-train=2', '--image-size=16', '--max-test=1'),
      "one class of 'count' only",
    ),
    ('FOLDER', ('--train-split=val',), '--train-split=val: .* splits train'),
  ],
)
def test_bad_input_is_one_line(
  checkpoint, folder, tmp_path, data, arguments, message
):
  data = data.replace('FOLDER', str(folder))
  with pytest.raises(errors.UserError, match=message) as caught:
    run(checkpoint, data, tmp_path / 'out', *arguments)
  assert caught.value.exit_code == 2
  assert '\n' not in str(caught.value)
