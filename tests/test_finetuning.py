"""Fine-tuning, piece by piece and as a whole."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_weights
from PIL import Image

from ijepa_jax import sharding
from ijepa_jax.config import fields
from ijepa_jax.data import randaugment, scenes
from ijepa_jax.evaluation.finetuning import (
  layer_decay,
  mixing,
  planning,
  training,
)
from ijepa_jax.evaluation.finetuning.recipe import (
  PAPER,
  PRESETS,
  Recipe,
  without_augmentation,
)
from ijepa_jax.evaluation.tasks import TASKS, finetune
from ijepa_jax.interop.weights import Architecture
from ijepa_jax.models import sizes

ARCHITECTURE = Architecture(sizes.Size(24, 2, 2), patch_size=4, image_size=16)
PLAIN = without_augmentation(Recipe(batch_size=16))


def encoder_params():
  return small_weights.untrained(ARCHITECTURE)


def mesh(devices):
  return sharding.make_mesh(fields.defaults(), jax.devices()[:devices])


def tuner(recipe, devices=1, classes=8):
  return training.FineTuner(ARCHITECTURE, 16, classes, recipe, mesh(devices))


# Layer decay.


def test_each_layer_below_is_slower_by_the_factor():
  params = {'encoder': encoder_params(), 'head': {'kernel': jnp.ones((24, 3))}}
  scales = layer_decay.scales(params, 0.5, depth=2)
  assert scales['head']['kernel'] == 1
  assert scales['encoder']['trunk']['norm']['scale'] == 1
  blocks = scales['encoder']['trunk']['blocks']
  for leaf in jax.tree.leaves(blocks):
    assert leaf.ravel().tolist() == [0.25, 0.5]
  assert scales['encoder']['patch_embed']['kernel'] == 0.125
  jax.tree.map(
    lambda scale, leaf: np.broadcast_shapes(scale.shape, leaf.shape),
    scales,
    params,
  )


@pytest.mark.slow
def test_the_step_moves_layers_by_their_rates():
  # Adam's first update has the size of the learning rate everywhere.
  recipe = dataclasses.replace(
    PLAIN, layer_decay=0.5, weight_decay=0.0, epochs=1, lr=1e-2
  )
  start = encoder_params()
  source = scenes.ScenesSource('train', 16)
  after = tuner(recipe).fit(start, source, np.arange(16), 'color', seed=0)
  moved = jax.tree.map(
    lambda a, b: float(np.abs(a - b).max()), after['encoder'], start
  )
  block = np.abs(
    after['encoder']['trunk']['blocks']['fc2']['bias']
    - start['trunk']['blocks']['fc2']['bias']
  ).max(1)
  assert moved['trunk']['norm']['bias'] == pytest.approx(1e-2 * 16 / 256, 1e-2)
  assert block[1] == pytest.approx(2 * block[0], rel=1e-2)
  assert moved['trunk']['norm']['bias'] == pytest.approx(2 * block[1], rel=1e-2)
  assert moved['patch_embed']['bias'] == pytest.approx(block[0] / 2, rel=1e-2)
  assert moved['pos_embed'] == 0


# Labels and mixing.


def test_smoothing_spreads_a_share_over_all_classes():
  found = mixing.smooth_one_hot(jnp.array([1]), 4, 0.1)
  np.testing.assert_allclose(found, [[0.025, 0.925, 0.025, 0.025]], rtol=1e-6)


IMAGES = jnp.stack([jnp.full((8, 8, 3), value) for value in (0.0, 1.0)])
TARGETS = jnp.eye(2)


def mixed(mixup, cutmix):
  """20 batches of the two images."""

  def one(key):
    return mixing.mix(key, IMAGES, TARGETS, mixup=mixup, cutmix=cutmix)

  keys = jax.random.split(jax.random.key(0), 20)
  images, targets = jax.jit(jax.vmap(one))(keys)
  return np.asarray(images), np.asarray(targets)


def test_mixup_weighs_labels_as_pixels():
  images, targets = mixed(mixup=0.8, cutmix=0.0)
  # The second image is all ones: its share can be read off every pixel.
  shares = images[..., 0, 0, 0]
  np.testing.assert_array_equal(images, images[..., :1, :1, :1] + 0 * images)
  np.testing.assert_allclose(targets[..., 1], shares, rtol=1e-5)
  np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-6)
  assert 0.1 < shares[:, 0].std() < 0.5


def test_cutmix_weighs_labels_by_the_area_pasted():
  images, targets = mixed(mixup=0.0, cutmix=1.0)
  assert set(np.unique(images)) == {0.0, 1.0}
  np.testing.assert_allclose(
    targets[..., 1], images.mean((-1, -2, -3)), rtol=1e-5
  )
  for first in images[:, 0, :, :, 0]:
    assert first.sum() == first.any(0).sum() * first.any(1).sum()  # a box


def test_the_box_has_the_share_that_is_wanted():
  keys = jax.random.split(jax.random.key(0), 50)
  boxes = jax.vmap(lambda key: mixing.cut_box(key, 64, 64, 0.75))(keys)
  areas = np.asarray(boxes).mean((1, 2))
  assert areas.max() == 0.25  # those that the border does not cut
  assert (areas > 0).all()


def test_with_both_each_batch_is_one_or_the_other():
  images, _ = mixed(mixup=0.8, cutmix=1.0)
  blended = [len(np.unique(first)) == 1 for first in images[:, 0]]
  assert 3 < sum(blended) < 17


def test_without_mixing_nothing_changes():
  images, targets = mixing.mix(
    jax.random.key(0), IMAGES, TARGETS, mixup=0.0, cutmix=0.0
  )
  assert images is IMAGES
  assert targets is TARGETS


# RandAugment.


def picture():
  return Image.fromarray(scenes.ScenesSource('train', 32)[0]['image'])


def test_randaugment_is_a_function_of_the_generator():
  augment = randaugment.RandAugment()

  def run(seed):
    return np.asarray(augment(picture(), np.random.default_rng(seed)))

  results = [run(seed) for seed in range(20)]
  for seed, result in enumerate(results):
    np.testing.assert_array_equal(result, run(seed))
    assert result.shape == (32, 32, 3)
  assert len({result.tobytes() for result in results}) > 12


@pytest.mark.parametrize('name', sorted(randaugment.OPERATIONS))
def test_an_operation_changes_an_image_and_keeps_its_size(name):
  operation = randaugment.OPERATIONS[name]
  for strength in (0.9, 1.0):
    image = operation(picture(), strength, np.random.default_rng(1))
    assert (image.size, image.mode) == ((32, 32), 'RGB')
    assert image.tobytes() != picture().tobytes()


@pytest.mark.parametrize(
  'name',
  ['rotate', 'shear_x', 'translate_y', 'color', 'brightness', 'solarize_add'],
)
def test_at_strength_0_an_operation_does_nothing(name):
  operation = randaugment.OPERATIONS[name]
  image = operation(picture(), 0.0, np.random.default_rng(0))
  assert image.tobytes() == picture().tobytes()


# Recipes.


def test_the_paper_fine_tunes_with_its_own_rate():
  # Appendix A.2: 3e-5 at a batch of 512, and for ViT-L a decay of 0.05.
  assert PAPER.lr * PAPER.batch_size / 256 == pytest.approx(3e-5)
  assert PAPER.weight_decay == 0.05
  assert (PAPER.mixup, PAPER.cutmix, PAPER.drop_path) == (0, 0, 0)


@pytest.mark.parametrize(
  ('size', 'epochs', 'lr', 'layer_decay', 'drop_path'),
  [
    ('base', 100, 5e-4, 0.65, 0.1),
    ('large', 50, 1e-3, 0.75, 0.2),
    ('huge', 50, 1e-3, 0.75, 0.3),
  ],
)
def test_mae_presets_are_its_commands(size, epochs, lr, layer_decay, drop_path):
  recipe = PRESETS[f'mae-{size}']
  assert (recipe.epochs, recipe.lr) == (epochs, lr)
  assert (recipe.layer_decay, recipe.drop_path) == (layer_decay, drop_path)
  assert (recipe.mixup, recipe.cutmix, recipe.ema) == (0.8, 1.0, 0.0)
  assert (recipe.batch_size, recipe.weight_decay) == (1024, 0.05)


def chosen(task='finetune', **options):
  """The recipe of a task's default options, and these."""
  defaults = {option.name: option.default for option in TASKS[task].options}
  images = types.SimpleNamespace(train=types.SimpleNamespace(source=None))
  return finetune.chosen_recipe(
    types.SimpleNamespace(images=images, options={**defaults, **options})
  )


@pytest.mark.parametrize('task', ['finetune', 'lowshot'])
def test_every_setting_that_is_offered_is_used(task):
  assert chosen(task) == PAPER
  offered = [o for o in TASKS[task].options if o.default is None]
  assert {'lr', 'weight_decay'} < {option.name for option in offered}
  for option in offered:
    recipe = chosen(task, **{option.name: option.kind('1')})
    assert getattr(recipe, option.name) == 1


# Schedule.


def test_the_rate_rises_then_falls_and_grows_with_the_batch():
  recipe = dataclasses.replace(
    PAPER, lr=1e-3, epochs=10, min_steps=0, warmup=0.2
  )
  rates = planning.plan(recipe, 5 * 512, devices=1).rates()
  assert len(rates) == 50
  assert rates.max() == rates[9] == pytest.approx(2e-3)
  assert rates[0] == pytest.approx(2e-4)
  assert (np.diff(rates[:10]) > 0).all()
  assert (np.diff(rates[9:]) < 0).all()
  assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_the_warm_up_grows_with_the_schedule():
  few = planning.plan(PAPER, 20, devices=1)
  assert (few.batch_size, few.steps, few.epochs) == (20, 1250, 1250)
  of_imagenet = planning.plan(PAPER, 12_811, devices=1)
  assert (of_imagenet.batch_size, of_imagenet.steps) == (512, 1250)
  assert few.warmup == of_imagenet.warmup == 125
  assert few.rates().argmax() == 124
  mae = planning.plan(PRESETS['mae-base'], 1_281_167, devices=8)
  assert mae.warmup == pytest.approx(5 * 1251, rel=1e-3)


def test_epochs_that_are_given_are_kept():
  def steps(**options):
    return planning.plan(chosen(**options), 20, devices=1).steps

  assert steps() == 1250
  assert steps(epochs=3) == 3
  assert steps(epochs=3, min_steps=7) == 7
  assert steps(min_steps=2000) == 2000


def test_a_single_update_is_made_at_the_peak():
  made = planning.plan(chosen(epochs=1), 20, devices=1)
  assert made.rates().tolist() == [made.peak]


def test_details_say_what_ran():
  made = planning.plan(PAPER, 20, devices=8)
  found = planning.details(PAPER, made)
  assert (found['batch'], found['steps'], found['epochs']) == (16, 1250, 1000)
  assert found['peak learning rate'] == pytest.approx(1.5e-5 * 16 / 256)
  assert found['recipe']['layer_decay'] == 0.75
  assert not {'epochs', 'batch_size', 'min_steps', 'lr'} & set(found['recipe'])


# As a whole.

LEARN = dataclasses.replace(
  PLAIN, lr=3e-2, epochs=12, batch_size=64, layer_decay=0.9, ema=0.9
)


def accuracy(made, params, records):
  source = scenes.ScenesSource('test', 16)
  truth = [source[int(record)]['labels']['color'] for record in records]
  guess = made.predict(params, source, records, crop=1.0)
  return np.mean(guess == truth)


def test_it_learns_and_repeats_itself(capsys):
  source = scenes.ScenesSource('train', 16)
  made = tuner(LEARN)
  params, again = (
    made.fit(encoder_params(), source, np.arange(256), 'color', seed=1)
    for _ in range(2)
  )
  jax.tree.map(np.testing.assert_array_equal, params, again)
  first = capsys.readouterr().err.splitlines()[0]
  assert first.startswith('48 updates of 64 images, 12.0 epochs of 256')
  # Chance is 1/8; 5 standard deviations above it.
  assert accuracy(made, params, np.arange(200)) > 0.25


@pytest.mark.slow
def test_devices_do_not_change_the_result():
  recipe = dataclasses.replace(
    Recipe(), epochs=1, batch_size=16, mixup=0.8, cutmix=1.0, drop_path=0.2
  )
  source = scenes.ScenesSource('train', 16)
  one, two = (
    tuner(recipe, devices).fit(
      encoder_params(), source, np.arange(32), 'shape', seed=2
    )
    for devices in (1, 2)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one, two
  )
