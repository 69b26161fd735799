"""Weights from format to format, without PyTorch."""

import itertools
import json
import shutil
import types

import numpy as np
import pytest
import small_weights
import tiny
from safetensors import numpy as safetensors

from ijepa_jax import checkpoint_files, errors, resume, train
from ijepa_jax.interop import reading, writing
from ijepa_jax.interop.weights import Architecture, Parameters, Weights
from ijepa_jax.models import layers, sizes

FORMATS = ('flax', 'huggingface', 'timm', 'orbax')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The directory of a short run."""
  folder = tmp_path_factory.mktemp('run')
  train.train(
    tiny.config(total_steps=2, eval__crop=0.75, log__every=2), folder / 'run'
  )
  return folder / 'run'


def saved(run, step=2):
  """A run's checkpoint."""
  folder = run / 'checkpoints' / str(step)
  return checkpoint_files.State(checkpoint_files.find(folder))


@pytest.mark.parametrize(
  ('first', 'second'), list(itertools.permutations(FORMATS, 2))
)
def test_an_encoder_survives_two_formats(first, second, tmp_path):
  held = small_weights.single()
  a = small_weights.write(held, tmp_path / 'a', first)
  b, _ = small_weights.run(a, tmp_path / 'b', f'--to={second}')
  again = reading.open_weights(str(b))
  small_weights.assert_same_weights(held, again)
  assert again.single


@pytest.fixture(scope='module')
def full(tmp_path_factory):
  """Two encoders, predictor and moments in a checkpoint."""
  folder = tmp_path_factory.mktemp('full')
  return small_weights.write(
    small_weights.full(ours=True, crop=0.5), folder / 'a', 'orbax'
  )


@pytest.mark.parametrize('which', ['target', 'context'])
@pytest.mark.parametrize('format', FORMATS)
def test_which_chooses_the_encoder(format, which, full, tmp_path):
  b, said = small_weights.run(
    full, tmp_path / 'b', f'--to={format}', f'--which={which}'
  )
  again = reading.open_weights(str(b))
  assert again.single
  expected = small_weights.full().encoder(which)
  small_weights.assert_same(again.target, expected)
  other = {'target': 'context', 'context': 'target'}[which]
  assert f'left out: the {other} encoder' in said
  assert "the optimiser's moments" in said


def test_orbax_keeps_both_encoders_predictor_and_moments(full, tmp_path):
  held = small_weights.full()
  b, said = small_weights.run(full, tmp_path / 'b', '--to=orbax')
  again = reading.open_weights(str(b))
  small_weights.assert_same_weights(held, again)
  assert again.progress == held.progress
  assert (again.ours, again.crop) == (True, 0.5)
  assert 'left out' not in said
  assert 'CC-BY-NC' not in said


def test_flax_keeps_the_predictor(tmp_path):
  held = small_weights.full()
  a = small_weights.write(held, tmp_path / 'a', 'flax')
  again = reading.open_weights(str(a))
  small_weights.assert_same(again.predictor, held.predictor)
  assert again.predictor_size == small_weights.PREDICTOR


@pytest.mark.parametrize('format', ['huggingface', 'timm'])
def test_formats_of_an_encoder_say_that_the_predictor_is_left_out(
  format, full, tmp_path
):
  _, said = small_weights.run(full, tmp_path / 'b', f'--to={format}')
  assert 'left out: the context encoder; the predictor; the optim' in said


@pytest.mark.parametrize('format', ['huggingface', 'timm', 'flax', 'orbax'])
def test_crop_and_origin_are_written_and_read_again(format, tmp_path):
  held = small_weights.single(ours=True, crop=0.75)
  a = small_weights.write(held, tmp_path / 'a', format)
  again = reading.open_weights(str(a))
  assert again.crop == 0.75
  assert again.ours


@pytest.mark.parametrize('format', ['huggingface', 'timm', 'flax', 'orbax'])
def test_how_far_training_was_is_written_and_read_again(format, tmp_path):
  held = small_weights.full()
  a = small_weights.write(held, tmp_path / 'a', format)
  assert reading.open_weights(str(a)).progress == {'step': 7, 'epoch': 2}


def licences(src, folder):
  """What convert says, a model card's licence and timm's."""
  card, said = small_weights.run(src, folder / 'card', '--to=huggingface')
  config, _ = small_weights.run(src, folder / 'timm', '--to=timm')
  lines = (card / 'README.md').read_text().splitlines()
  told = [line for line in lines if line.startswith('license: ')]
  config = json.loads((config / 'config.json').read_text())
  return said, told, config['pretrained_cfg']['license']


def test_weights_of_a_published_shape_are_under_the_authors_licence(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(writing, '_PUBLISHED', {(small_weights.SIZE, 4)})
  a = small_weights.write(small_weights.single(), tmp_path / 'a', 'flax')
  said, card, timm = licences(a, tmp_path)
  assert 'CC-BY-NC-4.0' in said
  assert card == ['license: cc-by-nc-4.0']
  assert timm == 'cc-by-nc-4.0'


def test_weights_of_others_keep_their_licence_which_is_unknown(tmp_path):
  a = small_weights.write(small_weights.single(), tmp_path / 'a', 'flax')
  said, card, timm = licences(a, tmp_path)
  assert 'its licence applies to DST too' in said
  assert 'CC-BY-NC' not in said
  assert card == ['license: unknown']
  assert timm == 'unknown'


def test_of_what_was_trained_here_no_licence_is_written(tmp_path, monkeypatch):
  monkeypatch.setattr(writing, '_PUBLISHED', {(small_weights.SIZE, 4)})
  held = small_weights.single(ours=True)
  a = small_weights.write(held, tmp_path / 'a', 'flax')
  said, card, timm = licences(a, tmp_path)
  assert 'licence' not in said
  assert card == []
  assert timm is None


@pytest.mark.parametrize(
  ('variant', 'patch', 'image', 'published'),
  [
    ('vit_huge', 14, 224, True),
    ('vit_huge', 16, 448, True),
    ('vit_giant', 16, 224, True),
    ('vit_huge', 14, 448, True),  # its positions interpolated
    ('vit_large', 16, 224, False),
    ('vit_giant', 14, 224, False),
  ],
)
def test_the_published_shapes_are_known(variant, patch, image, published):
  architecture = Architecture(sizes.SIZES[variant], patch, image)
  none = Parameters({}, {}.__getitem__)
  held = Weights('memory', 'ours', architecture, none, none)
  assert writing.may_be_published(held) is published


def test_image_size_interpolates_the_positions(full, tmp_path):
  held = small_weights.full()
  b, _ = small_weights.run(
    full, tmp_path / 'b', '--to=orbax', '--image-size=20'
  )
  again = reading.open_weights(str(b))
  assert again.architecture.image_size == 20
  assert again.target['pos_embed'].shape == (25, 44)
  assert again.predictor['pos_embed'].shape == (25, 24)
  # The middle patch of 3x3 is the middle of 5x5.
  for part in ('target', 'context', 'predictor'):
    old, new = getattr(held, part), getattr(again, part)
    np.testing.assert_allclose(
      new['pos_embed'][12], old['pos_embed'][4], atol=1e-6
    )
  small_weights.assert_same(
    again.context.without('pos_embed'), held.context.without('pos_embed')
  )
  small_weights.assert_same(
    again.moments.square['encoder'], held.moments.square['encoder']
  )


def test_image_size_makes_the_positions_anew_when_asked(tmp_path):
  a = small_weights.write(small_weights.single(), tmp_path / 'a', 'flax')
  b, _ = small_weights.run(
    a, tmp_path / 'b', '--to=flax', '--image-size=20', '--positions=sincos'
  )
  table = reading.open_weights(str(b)).target['pos_embed']
  np.testing.assert_array_equal(table, layers.sincos_positions(44, 5))


def test_a_run_is_read_target_and_context_told_apart(run, tmp_path):
  state = saved(run)
  held = reading.open_weights(str(run))
  assert held.ours
  assert held.crop == 0.75
  assert held.progress['step'] == 2
  assert held.moments.count == 2
  assert not held.single
  for name, prefix in (
    ('target', 'target'),
    ('context', 'params/encoder'),
    ('predictor', 'params/predictor'),
  ):
    path = 'trunk.blocks.fc1.kernel'
    np.testing.assert_array_equal(
      getattr(held, name)[path], state.read(f'{prefix}/trunk/blocks/fc1/kernel')
    )
  kernel = 'patch_embed.kernel'
  assert not np.array_equal(held.target[kernel], held.context[kernel])


@pytest.mark.parametrize('inside', ['', 'checkpoints', 'checkpoints/2'])
def test_a_run_is_found_by_any_of_its_folders(inside, run):
  assert reading.open_weights(str(run / inside)).source.endswith('/2')


def test_an_exported_run_has_its_target_encoder(run, tmp_path):
  b, said = small_weights.run(run, tmp_path / 'b', '--to=huggingface')
  small_weights.assert_same(
    reading.open_weights(str(b)).target, reading.open_weights(str(run)).target
  )
  assert 'the context encoder' in said
  assert 'licence' not in said
  config = json.loads((b / 'config.json').read_text())
  assert config['layer_norm_eps'] == 1e-6
  processor = json.loads((b / 'preprocessor_config.json').read_text())
  assert processor['size'] == {'shortest_edge': 32}  # 24 / 0.75


def start(init_from, workdir):
  """A run from weights that changes nothing; returns its state."""
  config = tiny.config(
    total_steps=1,
    seed=5,
    optim__lr=1e-12,
    optim__start_lr=0.0,
    optim__final_lr=0.0,
    optim__ema=1.0,
    init_from=str(init_from),
  )
  train.train(config, workdir)
  return reading.open_weights(str(workdir))


def assert_close(a, b):
  assert set(a) == set(b)
  for path in b:
    np.testing.assert_allclose(a[path], b[path], atol=1e-9)


def test_orbax_of_a_run_starts_another(run, tmp_path, capfd):
  b, _ = small_weights.run(run, tmp_path / 'b', '--to=orbax')
  started, wanted = start(b, tmp_path / 'run'), reading.open_weights(str(run))
  assert_close(started.target, wanted.target)
  assert_close(started.context, wanted.context)
  assert_close(started.predictor, wanted.predictor)
  assert 'no predictor' not in capfd.readouterr().err


def test_a_single_encoder_without_predictor_starts_a_run(run, tmp_path, capfd):
  a, _ = small_weights.run(run, tmp_path / 'a', '--to=timm')
  b, _ = small_weights.run(a, tmp_path / 'b', '--to=orbax')
  wanted = reading.open_weights(str(run))
  capfd.readouterr()
  started = start(b, tmp_path / 'run')
  assert_close(started.target, wanted.target)
  assert_close(started.context, wanted.target)
  assert 'which has no predictor: a new one' in capfd.readouterr().err
  kernel = 'embed.kernel'
  assert np.abs(started.predictor[kernel] - wanted.predictor[kernel]).max() > 0


def test_a_converted_checkpoint_is_laid_out_as_a_runs(run, tmp_path):
  b, _ = small_weights.run(run, tmp_path / 'b', '--to=orbax')
  ours, theirs = (
    saved(run).shapes,
    checkpoint_files.State(checkpoint_files.find(b)).shapes,
  )
  weights = {n for n in ours if n.startswith(('target/', 'params/'))}
  assert weights == {n for n in theirs if not n.startswith('opt_state/')}
  assert all(ours[name] == theirs[name] for name in weights)


def test_dst_may_be_in_a_folder_that_does_not_exist_yet(tmp_path):
  a = small_weights.write(small_weights.single(), tmp_path / 'a', 'flax')
  b, _ = small_weights.run(a, tmp_path / 'new' / 'b', '--to=timm')
  assert small_weights.listing(tmp_path / 'new') == {
    str(b),
    str(b / 'config.json'),
    str(b / 'model.safetensors'),
  }


def test_flax_is_plain_safetensors_with_our_names(tmp_path):
  a = small_weights.write(small_weights.single(), tmp_path / 'a', 'flax')
  tensors = safetensors.load_file(a / 'model.safetensors')
  assert tensors['trunk.blocks.qkv.kernel'].shape == (3, 44, 132)


def test_whoever_may_read_one_file_may_read_all(tmp_path):
  a = small_weights.write(small_weights.single(), tmp_path / 'a', 'flax')
  mode = (a / 'model.safetensors').stat().st_mode & 0o777
  assert mode == (a / 'config.json').stat().st_mode & 0o777


@pytest.mark.parametrize('ours', [False, True])
def test_a_run_inherits_where_its_weights_come_from(tmp_path, ours):
  a = small_weights.write(
    small_weights.single(ours=ours), tmp_path / 'a', 'orbax'
  )
  source = types.SimpleNamespace(name='', fingerprint='', epoch_length=1)
  meta = resume.make_meta(tiny.config(init_from=str(a)), source)
  assert meta['ijepa_jax']['trained_here'] is ours


def copy_of(run, folder, change):
  """A copy of a run's checkpoint, after `change(meta)`."""
  shutil.copytree(run / 'checkpoints' / '2', folder / '2')
  file = folder / '2' / 'meta' / 'metadata'
  (file.parent / 'checksums.json').unlink()  # as of who has none
  meta = json.loads(file.read_text())
  change(meta)
  file.write_text(json.dumps(meta))
  return str(folder / '2')


@pytest.mark.parametrize(
  ('section', 'key', 'value'),
  [
    ('', 'config', [1]),
    ('', 'ijepa_jax', [1]),
    ('', 'data', 3),
    ('data', 'epoch_length', 'long'),
    ('config', 'batch_size', 0),
    ('config', 'model', 'vit_micro'),
    ('config.model', 'variant', ['vit_micro']),
    ('config.model', 'variant', 'vit_tiny'),
    ('config.model', 'patch_size', '4'),
    ('config.model', 'image_size', None),
    ('config', 'predictor', [1]),
    ('config.predictor', 'width', 10**30),
    ('config.predictor', 'heads', 'many'),
  ],
)
def test_what_a_run_says_of_itself_is_checked(
  section, key, value, run, tmp_path
):
  def change(meta):
    for name in filter(None, section.split('.')):
      meta = meta[name]
    meta[key] = value

  path = copy_of(run, tmp_path, change)
  with pytest.raises(errors.UserError) as caught:
    reading.open_weights(path)
  where = f'{path}/meta: {section}.{key}'.replace(' .', ' ')
  assert str(caught.value).startswith(f'{where} is ')


def test_a_run_that_does_not_say_its_crop_has_the_usual_one(run, tmp_path):
  path = copy_of(run, tmp_path, lambda meta: meta['ijepa_jax'].pop('crop'))
  held = reading.open_weights(path)
  assert (held.crop, held.ours) == (0.875, True)


def test_a_run_from_before_its_mark_is_ours_and_has_its_crop(run, tmp_path):
  path = copy_of(run, tmp_path, lambda meta: meta.pop('ijepa_jax'))
  held = reading.open_weights(path)
  assert (held.crop, held.ours) == (0.75, True)
  assert checkpoint_files.trained_here(path)


def test_a_mark_that_cannot_be_is_one_line_for_a_run_that_starts_from_it(
  run, tmp_path
):
  path = copy_of(run, tmp_path, lambda meta: meta.update(ijepa_jax=[1]))
  with pytest.raises(errors.UserError, match='ijepa_jax is the list'):
    checkpoint_files.trained_here(path)
