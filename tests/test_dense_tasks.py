"""The tasks on masks, boxes and few labels, by the command."""

import json
import subprocess
import sys

import numpy as np
import pytest
import small_weights
import tiny
from PIL import Image

from ijepa_jax import errors, evaluate
from ijepa_jax.interop.weights import Architecture
from ijepa_jax.models import sizes

ARCHITECTURE = Architecture(sizes.Size(48, 2, 3), patch_size=4, image_size=32)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  path = tmp_path_factory.mktemp('weights') / 'encoder'
  tree = small_weights.untrained(ARCHITECTURE)
  held = small_weights.of_tree(tree, ARCHITECTURE)
  return small_weights.write(held, path, 'flax')


def run(checkpoint, data, out, *arguments):
  """Runs the command; returns results by (task, label, metric)."""
  evaluate.main(
    [
      f'--checkpoint={checkpoint}',
      f'--data={data}',
      f'--out={out}',
      '--no-cache',
      '--batch-size=8',
      *arguments,
    ]
  )
  found = json.loads((out / 'results.json').read_text())
  return {(r['task'], r['label'], r['metric']): r for r in found['results']}


def test_heads_learn_scenes_and_beat_chance(checkpoint, tmp_path):
  results = run(
    checkpoint,
    'scenes',
    tmp_path,
    '--tasks=segment,detect,count',
    '--max-train=500',
    '--max-test=100',
    '--baselines=none',
    '--segment.steps=150',
    '--segment.batch_size=32',
    '--segment.lrs=0.03',
    '--segment.weight_decays=0',
    '--detect.steps=80',
    '--detect.batch_size=32',
    '--detect.lrs=0.01',
  )
  segment = results['segment', 'mask/mlp', 'mIoU']
  assert segment['value'] > segment['chance'] + 0.01
  # All is background: its share of the pixels over six classes.
  assert segment['chance'] == pytest.approx(0.86 / 6, abs=0.02)
  assert segment['details']['IoU by class']['background'] > 0.8
  box = results['detect', 'box', 'AP50']
  assert box['value'] > 2 * box['chance']
  top1 = results['count', 'count', 'top1']
  assert top1['value'] > top1['chance'] + 0.05
  assert results['count', 'count', 'R2']['value'] > 0
  assert results['count', 'count', 'R2']['chance'] <= 0
  error = results['count', 'count', 'MAE']
  assert error['value'] < error['chance']
  for result in results.values():
    assert result['low'] <= result['value'] <= result['high']


@pytest.fixture(scope='module')
def blocks(tmp_path_factory):
  """Images of black and white patches, whose masks say which is which."""
  root = tmp_path_factory.mktemp('blocks')
  rng = np.random.default_rng(0)
  for split, count in (('train', 40), ('test', 10)):
    for kind in ('images', 'masks'):
      (root / kind / split).mkdir(parents=True)
    for number in range(count):
      cells = rng.integers(0, 2, (8, 8)).astype(np.uint8)
      image = np.kron(cells, np.full((4, 4), 255, np.uint8))
      mask = np.kron(cells, np.ones((4, 4), np.uint8))
      mask[0, :4] = 255
      name = f'{split}/{number:02}.png'
      Image.fromarray(image).convert('RGB').save(root / 'images' / name)
      Image.fromarray(mask).save(root / 'masks' / name)
  return root


@pytest.mark.slow
def test_what_a_patch_shows_is_segmented_perfectly(
  checkpoint, blocks, tmp_path
):
  results = run(
    checkpoint,
    blocks,
    tmp_path,
    '--tasks=segment',
    '--baselines=pixels',
    '--segment.steps=100',
    '--segment.lrs=0.1',
    '--segment.weight_decays=0',
  )
  result = results['segment', 'mask/linear', 'mIoU']
  # The edges between patches are resized, so not quite 1.
  assert result['pixels'] > 0.9
  assert result['details']['pixels']['low'] > 0.85
  assert result['chance'] == pytest.approx(0.25, abs=0.05)


@pytest.mark.slow
def test_boxes_in_cocos_format(checkpoint, tmp_path):
  rng = np.random.default_rng(0)
  for split in ('train', 'test'):
    top = tmp_path / 'data' / split
    (top / 'images').mkdir(parents=True)
    held = {
      'images': [],
      'annotations': [],
      'categories': [{'id': 5, 'name': 'square'}],
    }
    for number in range(16):
      x, y = (4 * int(k) for k in rng.integers(0, 7, 2))
      pixels = np.zeros((32, 64, 3), np.uint8)
      pixels[y : y + 4, 2 * x : 2 * x + 8] = 255
      name = f'{number}.png'
      Image.fromarray(pixels).save(top / 'images' / name)
      held['images'].append(
        {'id': number, 'file_name': name, 'width': 64, 'height': 32}
      )
      held['annotations'].append(
        {'image_id': number, 'category_id': 5, 'bbox': [2 * x, y, 8, 4]}
      )
    (top / 'annotations.json').write_text(json.dumps(held))
  results = run(
    checkpoint,
    tmp_path / 'data',
    tmp_path / 'out',
    '--tasks=detect',
    '--baselines=pixels',
    '--detect.steps=150',
    '--detect.lrs=0.03',
  )
  assert results['detect', 'box', 'AP50']['pixels'] > 0.9
  with pytest.raises(errors.UserError, match=r'has no labels.*segment, detect'):
    run(checkpoint, tmp_path / 'data', tmp_path / 'out', '--tasks=logistic')


@pytest.mark.slow
def test_nothing_to_learn_from_is_one_line(checkpoint, tmp_path):
  for kind in ('images', 'masks'):
    (tmp_path / kind).mkdir()
  names = [f'{number}.png' for number in range(6)]
  for name in names:
    Image.new('RGB', (32, 32)).save(tmp_path / 'images' / name)
    Image.new('L', (32, 32), 255).save(tmp_path / 'masks' / name)
  options = (tmp_path / 'out', '--baselines=none')
  with pytest.raises(errors.UserError, match=r'no pixel of .* has a class'):
    run(checkpoint, tmp_path, *options, '--tasks=segment')
  (tmp_path / 'masks').rename(tmp_path / 'set_aside')
  held = {
    'images': [
      {'id': number, 'file_name': name, 'width': 32, 'height': 32}
      for number, name in enumerate(names)
    ],
    'annotations': [],
    'categories': [{'id': 1, 'name': 'square'}],
  }
  (tmp_path / 'annotations.json').write_text(json.dumps(held))
  with pytest.raises(errors.UserError, match='has 0 images with a box'):
    run(checkpoint, tmp_path, *options, '--tasks=distance')
  with pytest.raises(errors.UserError, match='have 0 objects'):
    run(checkpoint, tmp_path, *options, '--tasks=count')
  with pytest.raises(errors.UserError, match='has no box at all'):
    run(checkpoint, tmp_path, *options, '--tasks=detect')


def test_tasks_that_do_not_fit_the_data_are_one_line(
  checkpoint, blocks, tmp_path, monkeypatch
):
  with pytest.raises(errors.UserError, match=r'task detect: .* has no boxes'):
    run(checkpoint, blocks, tmp_path, '--tasks=segment,detect')
  assert not list(tmp_path.glob('results.*'))  # before anything was measured
  with pytest.raises(errors.UserError, match=r'task count: .* has no boxes'):
    run(checkpoint, blocks, tmp_path, '--tasks=count')
  monkeypatch.setitem(sys.modules, 'pycocotools', None)
  with pytest.raises(errors.UserError, match=r'pycocotools: pip install'):
    run(checkpoint, 'scenes', tmp_path / 'other', '--tasks=detect')


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('--segment.lrs=fast', r'--segment\.lrs'),
    ('--segment.lrs=-1', r'--segment\.lrs.*at least 0'),
    ('--finetune.preset=mine', r"--finetune\.preset.*'mine'.*paper, mae-"),
    ('--finetune.ema=1.5', r'--finetune\.ema.*0 to 1'),
  ],
)
def test_bad_options_are_one_line(checkpoint, tmp_path, argument, message):
  with pytest.raises(errors.UserError, match=message):
    run(checkpoint, 'scenes', tmp_path, '--tasks=segment', argument)


@pytest.mark.slow
def test_few_labels_by_both_methods(checkpoint, tmp_path):
  results = run(
    checkpoint,
    'scenes',
    tmp_path,
    '--tasks=lowshot',
    '--labels=color',
    '--max-train=200',
    '--max-test=80',
    '--baselines=pixels',
    '--lowshot.subsets=1,10',
    '--lowshot.seeds=2',
    '--lowshot.epochs=1',
    '--lowshot.min_steps=60',
    '--lowshot.lr=0.05',
  )
  assert len(results) == 4
  for result in results.values():
    assert result['chance'] < 0.25
    assert len(result['details']['top1 by seed']) == 2
    assert result['pixels'] is not None
  logistic = results['lowshot', 'color/10/logistic', 'top1']
  assert logistic['details']['images'] == [80, 80]
  assert logistic['pixels'] > 0.2  # chance 1/8
  trained = results['lowshot', 'color/10/finetune', 'top1']
  method = trained['details']['pixels']['method']
  assert method['recipe']['flip'] is False
  assert (method['batch'], method['steps']) == (80, 60)
  assert trained['pixels'] > 0.2


@pytest.mark.slow
def test_finetune_is_a_task(checkpoint, tmp_path):
  results = run(
    checkpoint,
    'scenes',
    tmp_path,
    '--tasks=finetune',
    '--labels=color',
    '--max-train=400',
    '--max-test=200',
    '--finetune.epochs=20',
    '--finetune.min_steps=100',
    '--finetune.batch_size=64',
    '--finetune.lr=0.05',
  )
  result = results['finetune', 'color', 'top1']
  assert result['low'] > result['chance']
  details = result['details']
  assert (details['batch'], details['steps']) == (64, 120)
  assert details['peak learning rate'] == 0.05 / 4
  assert result['init'] > 0.2
  assert result['pixels'] > 0.2


def test_the_command_exits_with_2(tmp_path):
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'ijepa_jax.evaluate',
      '--checkpoint=run',
      '--data=scenes',
      '--tasks=lowshot',
      '--lowshot.subsets=half',
    ],
    env=tiny.environment(),
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: argument --lowshot.subsets: 'half' is neither")
