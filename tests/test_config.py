import json
import pathlib
import runpy

import pytest

from ijepa_jax import errors
from ijepa_jax.config import fields, validate
from ijepa_jax.data import masks

CONFIGS = pathlib.Path(__file__).parent.parent / 'configs'
NAMES = sorted(path.stem for path in CONFIGS.glob('*.py'))

# An 8x8 grid: targets of 9 to 12 patches.
SMALL = {
  'batch_size': 64,
  'model.variant': 'vit_micro',
  'model.patch_size': 4,
  'model.image_size': 32,
  'mask.min_keep': 8,
}


def make(changes):
  config = fields.defaults()
  for name, value in changes.items():
    fields.assign(config, name, value)
  return config


def load(name, *variant):
  return runpy.run_path(str(CONFIGS / f'{name}.py'))['get_config'](*variant)


def refusal(config, num_devices=None):
  with pytest.raises(errors.UserError) as caught:
    validate.validate(config, num_devices)
  message = str(caught.value)
  assert '\n' not in message
  return message


# --- The table ------------------------------------------------------------


@pytest.mark.parametrize('field', fields.FIELDS.values(), ids=lambda f: f.name)
def test_every_field_is_documented_and_allows_its_default(field):
  assert field.doc.endswith('.')
  assert field.kind in (bool, int, float, str, tuple)
  field.check(field.default)
  assert field.doc in ' '.join(fields.describe().split())


def test_default_config_has_one_value_per_field():
  flat = fields.flatten(fields.defaults().to_dict())
  assert flat == {f.name: f.default for f in fields.FIELDS.values()}


def test_whole_number_is_accepted_for_a_number_and_text_is_not():
  config = fields.defaults()
  config.optim.lr = 1
  assert type(config.optim.lr) is float
  with pytest.raises(TypeError):
    config.optim.lr = 'high'
  with pytest.raises(TypeError):
    config.total_steps = 'many'


@pytest.mark.parametrize(
  ('name', 'text', 'value'),
  [
    ('batch_size', '64', 64),
    ('optim.lr', '1', 1.0),
    ('optim.lr', '1e-4', 1e-4),
    ('data.flip', 'True', True),
    ('total_steps', 'none', None),
    ('total_steps', '7', 7),
    ('data.path', '123', '123'),
    ('data.source', 'tfds:cifar10', 'tfds:cifar10'),
    ('mask.target_scale', '(0.2, 1)', (0.2, 1.0)),
    ('mask.target_scale', '0.2,0.3', (0.2, 0.3)),
  ],
)
def test_text_is_parsed_to_the_type_of_the_field(name, text, value):
  parsed = fields.find(name).parse(text)
  assert parsed == value
  assert type(parsed) is type(value)


@pytest.mark.parametrize(
  ('name', 'text', 'message'),
  [
    ('batch_size', 'abc', "batch_size='abc': expected a whole number"),
    ('batch_size', '8.5', 'expected a whole number'),
    ('batch_size', '0', 'nearest: 1'),
    ('batch_size', 'none', 'expected a whole number'),
    ('data.flip', 'maybe', 'expected true or false'),
    ('optim.lr', 'nan', 'expected a number in (0, inf)'),
    ('optim.lr', 'inf', 'expected a number in (0, inf)'),
    ('optim.lr', '0', 'expected a number in (0, inf)'),
    ('optim.ema', '1.2', 'nearest: 1.0'),
    ('loss', 'smooth_l2', 'nearest: smooth_l1'),
    ('data.source', 'folders', 'nearest: folder'),
    ('mask.target_scale', '0.2', 'expected a pair'),
    ('mask.target_scale', '(0.1, 0.2, 0.3)', 'expected a pair'),
    ('mask.target_scale', '(0.2, 0.1)', 'expected a pair (low, high)'),
    ('mask.target_scale', '(0.5, 1.5)', 'in (0, 1]'),
    ('mask.target_scale', '(0.1, x)', 'expected a pair'),
  ],
)
def test_wrong_text_is_refused_with_what_is_expected(name, text, message):
  with pytest.raises(errors.UserError) as caught:
    fields.find(name).parse(text)
  assert message in str(caught.value)
  assert name in str(caught.value)


# --- The configs ----------------------------------------------------------


@pytest.mark.parametrize('variant', ['', 'paper'])
@pytest.mark.parametrize('name', NAMES)
def test_config_file_is_valid(name, variant):
  validate.validate(load(name, variant), num_devices=8)


@pytest.mark.parametrize('name', NAMES)
def test_docstring_of_a_config_has_its_command(name):
  assert f'--config=configs/{name}.py' in (CONFIGS / f'{name}.py').read_text()


@pytest.mark.parametrize('name', NAMES)
def test_unknown_variant_is_refused(name):
  with pytest.raises(errors.UserError, match=r"'papr'.*FILE\.py:paper"):
    load(name, 'papr')


@pytest.mark.parametrize(
  ('name', 'epochs', 'warmup', 'patch', 'image', 'depth', 'tokens'),
  [
    ('vith14', 300, 40, 14, 224, 12, 70),
    ('vith16_448', 300, 40, 16, 448, 12, 272),
    ('vith14_in22k', 66, 3, 14, 224, 12, 78),
    ('vitg16_in22k', 44, 3, 16, 224, 16, 60),
  ],
)
def test_published_values(name, epochs, warmup, patch, image, depth, tokens):
  config = load(name)
  assert config.total_epochs == epochs
  assert config.optim.warmup_epochs == warmup
  assert (config.model.patch_size, config.model.image_size) == (patch, image)
  assert (config.predictor.depth, config.predictor.width) == (depth, 384)
  assert config.mask.context_tokens == tokens
  assert config.batch_size == 2048


def test_paper_variant_changes_what_the_paper_says_and_nothing_else():
  assert fields.changed_fields(
    load('vith14').to_dict(), load('vith14', 'paper')
  ) == [
    'loss: smooth_l1 -> l2',
    'optim.start_lr: 0.0002 -> 0.0001',
    'optim.warmup_epochs: 40.0 -> 15.0',
    'optim.weight_decay_schedule: cosine -> linear',
  ]


# --- Validation -----------------------------------------------------------


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'batch_size': True}, 'batch_size=True: expected a whole number'),
    ({'seed': None}, 'seed=None: expected a whole number'),
    ({'model.image_size': 30}, 'model.image_size=30.*nearest: 28 or 32'),
    ({'model.patch_size': 64}, 'model.image_size=32.*nearest: 64'),
    ({'model.patch_size': 32}, 'mask.target_scale.*empty on 1x1'),
    ({'mask.min_keep': 9}, 'mask.min_keep=9.*only 9 of 8x8.*nearest: 8'),
    ({'mask.target_tokens': 11}, 'mask.target_tokens=11.*nearest: 12'),
    ({'mask.context_tokens': 8}, 'mask.context_tokens=8.*nearest: 9'),
    ({'mask.context_tokens': 41}, 'mask.context_tokens=41.*nearest: 40'),
    ({'mask.context_scale': (0.1, 0.1)}, 'mask.context_scale.*only 4 of'),
    ({'predictor.width': 98}, 'predictor.width=98.*nearest: 96 or 108'),
    ({'predictor.heads': 5}, 'predictor.heads=5; nearest: 380 or 400'),
    ({'checkpoint.keep_period': 1500}, 'keep_period=1500.*1000 or 2000'),
    ({'optim.accumulate': 3}, 'batch_size=64.*nearest: 63 or 66'),
    ({'optim.warmup_epochs': 301.0}, 'warmup_epochs=301.*nearest: 300'),
    ({'mesh.tensor': 5}, 'mesh.tensor=5: .*heads of model.variant=.*nearest'),
    ({'mesh.data': 0}, 'mesh.data=0.*nearest: -1'),
    ({'mesh.fsdp': 3}, 'batch_size=64: expected a multiple of 3 devices'),
  ],
)
def test_what_cannot_work_is_refused_with_the_nearest_choice(changes, message):
  with pytest.raises(errors.UserError, match=message):
    validate.validate(make(SMALL | changes))


def test_small_config_without_these_changes_is_valid():
  validate.validate(make(SMALL), num_devices=8)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'mesh.fsdp': 3}, 'mesh.fsdp=3.*devices, 8; nearest: mesh.fsdp=2'),
    (
      {'mesh.fsdp': 2, 'mesh.tensor': 3},
      'mesh.fsdp=2 x mesh.tensor=3.*devices, 8; nearest: mesh.tensor=2',
    ),
    ({'mesh.data': 2}, 'mesh.data=2: .*devices, 8; nearest: mesh.data=-1'),
    (
      {'mesh.fsdp': -1},
      'mesh.fsdp=-1: mesh.data already takes all devices.*nearest: 1',
    ),
    ({'batch_size': 60}, 'batch_size=60.*8 devices.*nearest: 56 or 64'),
    ({'batch_size': 4}, 'batch_size=4.*nearest: 8'),
    ({'optim.accumulate': 16}, 'batch_size=64.*nearest: 128'),
  ],
)
def test_batch_and_mesh_must_fit_the_devices(changes, message):
  config = make(SMALL | changes)
  with pytest.raises(errors.UserError, match=message):
    validate.validate(config, num_devices=8)


@pytest.mark.parametrize(
  'mesh',
  [
    {},
    {'mesh.fsdp': 8},
    {'mesh.data': 2, 'mesh.fsdp': 4},
    {'mesh.data': 2, 'mesh.fsdp': -1},
    {
      'mesh.data': 1,
      'mesh.tensor': -1,
      'mesh.fsdp': 4,
      'model.variant': 'vit_base',
    },
  ],
)
def test_meshes_that_use_all_devices_are_valid(mesh):
  validate.validate(make(SMALL | mesh), num_devices=8)


def test_warmup_may_not_outlast_a_run_of_total_steps():
  config = make(SMALL | {'total_steps': 100, 'optim.warmup_epochs': 11.0})
  validate.validate(config)
  with pytest.raises(errors.UserError, match='run of 10 epochs; nearest: 10'):
    validate.check_warmup(config, epochs=10)


def test_field_that_a_config_invents_is_refused():
  config = make(SMALL)
  config.optim.learning_rat = 1.0
  assert "unknown field 'optim.learning_rat'" in refusal(config)


def test_field_that_a_config_lacks_is_refused():
  config = make(SMALL)
  del config.optim.lr
  assert refusal(config).startswith('optim.lr: missing')


@pytest.mark.parametrize('bounds', ['reference', 'full'])
@pytest.mark.parametrize('context_scale', [(0.85, 1.0), (0.5, 0.6)])
def test_no_context_is_larger_than_the_largest_allowed_one(
  bounds, context_scale
):
  changes = {'mask.bounds': bounds, 'mask.context_scale': context_scale}
  config = make(SMALL | changes | {'mask.context_tokens': 1000})
  largest = int(refusal(config).split()[-1])
  config.mask.num_targets = 1  # takes least away, so that the bound is met
  config.mask.target_tokens = 12
  spec = masks.MaskSpec(8, **config.mask)
  drawn = max(
    masks.sample_masks(spec, 0, step, 64).uncut_length.max()
    for step in range(200)
  )
  assert drawn == largest


# --- Resolving ------------------------------------------------------------


def test_resolve_fills_what_follows_from_other_fields():
  config = make(SMALL)
  resolved = validate.resolve(config)
  assert resolved.predictor.heads == 3
  assert resolved.mask.target_tokens == 12
  assert 9 <= resolved.mask.context_tokens <= 40
  assert resolved.total_steps is None
  assert config.mask.target_tokens is None
  validate.validate(resolved)
  assert validate.resolve(resolved) == resolved


def test_resolve_keeps_what_is_set():
  changes = {
    'predictor.heads': 6,
    'mask.context_tokens': 24,
    'mask.target_tokens': 16,
  }
  config = make(SMALL | changes)
  assert validate.resolve(config).to_dict() == config.to_dict()


def test_default_of_context_tokens_is_no_more_than_the_largest_context():
  # 3x3 patches without 2x2: 5 are always left, which rounds up to 6.
  config = make(
    {
      'model.image_size': 56,
      'mask.min_keep': 0,
      'mask.num_targets': 1,
      'mask.target_scale': (0.3, 0.3),
      'mask.target_aspect': (1.0, 1.0),
      'mask.context_scale': (1.0, 1.0),
    }
  )
  resolved = validate.resolve(config)
  assert resolved.mask.context_tokens == 5
  validate.validate(resolved)


# --- Comparing, for a resumed run -----------------------------------------


def test_fixed_fields_that_differ_are_listed():
  old = make(SMALL).to_dict()
  new = make(SMALL | {'optim.lr': 2e-3, 'mask.target_scale': (0.1, 0.2)})
  assert fields.changed_fields(old, new) == [
    'mask.target_scale: (0.15, 0.2) -> (0.1, 0.2)',
    'optim.lr: 0.001 -> 0.002',
  ]


def test_free_fields_may_differ():
  changes = {
    'log.every': 1,
    'checkpoint.keep': 9,
    'eval.every': 1,
    'mesh.fsdp': 2,
    'data.workers': 0,
    'data.path': 'moved',
    'data.max_bad_share': 0.5,
    'model.attention': 'cudnn',
    'model.remat': 'full',
    'init_from': 'elsewhere',
  }
  assert not fields.changed_fields(make({}).to_dict(), make(changes))


def test_config_read_from_json_equals_itself():
  config = validate.resolve(load('vith14'))
  old = json.loads(config.to_json())
  assert not fields.changed_fields(old, config)


def test_field_younger_than_the_run_counts_as_its_default():
  old = make({}).to_dict()
  del old['optim']['clip']
  assert not fields.changed_fields(old, make({}))
  assert fields.changed_fields(old, make({'optim.clip': 1.0})) == [
    'optim.clip: 0.0 -> 1.0'
  ]
