"""`python -m ijepa_jax.visualize`: all pictures of a checkpoint."""

import contextlib
import io
import json
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest
import small_weights
import tiny
from PIL import Image

from ijepa_jax import checkpoint, errors, resume, run_files, train_step
from ijepa_jax.data import pipeline, sources, transforms
from ijepa_jax.interop.weights import Architecture
from ijepa_jax.visualize import __main__ as visualize
from ijepa_jax.visualize import images, recipe, sketch, subject
from ijepa_jax.visualize.pictures import PICTURES

ARCHITECTURE = Architecture(small_weights.SIZE, patch_size=4, image_size=24)


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> pathlib.Path:
  """A run's directory with two checkpoints, as training writes it."""
  folder = tmp_path_factory.mktemp('look') / 'run'
  config = tiny.config()
  state = jax.jit(lambda: train_step.init_state(config))()
  meta = resume.make_meta(config, sources.training_source(config))
  saver = checkpoint.Checkpoints(folder, keep=2, keep_period=None)
  for step in (2, 4):
    saver.save(step, state, meta)
  saver.close()
  return folder


@pytest.fixture(scope='module', autouse=True)
def _short_training():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sketch, '_STEPS', 100)
    yield


@pytest.fixture(scope='module')
def single(tmp_path_factory) -> pathlib.Path:
  """An encoder alone, in another format."""
  folder = tmp_path_factory.mktemp('look') / 'single'
  return small_weights.write(
    small_weights.single(ARCHITECTURE), folder, 'huggingface'
  )


def draw(checkpoint, *options: str) -> str:
  """Runs the command on scenes; returns what it said."""
  said = io.StringIO()
  with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
    visualize.main(
      [f'--checkpoint={checkpoint}', '--images=scenes', '--count=16', *options]
    )
  return said.getvalue()


def index(folder: pathlib.Path) -> dict[str, dict]:
  pictures = json.loads((folder / visualize.INDEX).read_text())
  return {picture['name']: picture for picture in pictures}


def seen(path, count=8, **options) -> subject.Subject:
  """A subject with scenes."""

  def load(model):
    side = model.architecture.image_size
    return images.load('scenes', count, None, transforms.EvalTransform(side))

  return subject.Subject(str(path), 'target', None, load, None, **options)


@pytest.fixture(scope='module')
def drawn(run) -> pathlib.Path:
  """The folder with all pictures of the run."""
  draw(run)
  return run / 'visualize'


def test_the_report_finds_them(drawn, tmp_path):
  (tmp_path / run_files.CONFIG).write_text('{}')
  shutil.copytree(drawn, tmp_path / drawn.name)
  found = run_files.read(tmp_path).pictures
  assert [picture['name'] for picture in found] == list(PICTURES)


def test_a_run_has_every_picture(drawn):
  listed = index(drawn)
  assert list(listed) == list(PICTURES)
  for name, picture in listed.items():
    assert picture['file'] == f'{name}.png'
    assert picture['command'].startswith('python -m ijepa_jax.visualize')
    assert picture['title']
    assert picture['explanation']
    pixels = np.asarray(Image.open(drawn / picture['file']).convert('L'))
    assert min(pixels.shape) > 300
    # Not blank: both ink and tones between.
    assert (pixels < 80).mean() > 0.003
    assert len(np.unique(pixels)) > 50
  figures = listed['imagination']['figures']
  assert {'trained', 'swapped', 'untrained', 'truth/color'} < figures.keys()


def test_a_log_has_plain_lines_of_progress(single, tmp_path):
  said = draw(single, f'--out={tmp_path}', '--pictures=pca')
  assert 'features: 16 of 16 images' in said
  assert '\r' not in said


def test_the_same_command_gives_the_same_pictures(run, drawn, tmp_path):
  draw(run, f'--out={tmp_path}', '--pictures=pca,imagination,sketch')
  for name in ('pca.png', 'imagination.png', 'sketch.png'):
    assert (tmp_path / name).read_bytes() == (drawn / name).read_bytes()


def test_without_a_predictor_the_others_are_drawn(single, tmp_path):
  said = draw(single, f'--out={tmp_path}', '--pictures=pca,imagination,sketch')
  assert list(index(tmp_path)) == ['pca', 'sketch']
  assert sorted(p.name for p in tmp_path.glob('*.png')) == [
    'pca.png', 'sketch.png',
  ]  # fmt: skip
  (line,) = [line for line in said.split('\n') if 'imagination' in line]
  assert line.startswith('imagination: not drawn: ')
  assert 'holds no predictor' in line


def test_nothing_drawn_is_an_error(single, tmp_path):
  with pytest.raises(errors.UserError, match=r'^imagination: not drawn: .*no'):
    draw(single, f'--out={tmp_path}', '--pictures=imagination')


def test_images_are_looked_for_before_the_checkpoint_is_read(tmp_path):
  with pytest.raises(errors.UserError, match=r'^--images: .*missing'):
    draw('no checkpoint', '--images=missing', f'--out={tmp_path}')


def test_several_that_cannot_be_drawn_are_named_once(
  single, tmp_path, capsys, monkeypatch
):
  monkeypatch.setitem(sys.modules, 'sklearn.manifold', None)
  argv = [f'--checkpoint={single}', '--images=scenes', f'--out={tmp_path}']
  with pytest.raises(errors.UserError, match=r'^nothing was drawn$'):
    visualize.main([*argv, '--count=10', '--pictures=imagination,tsne'])
  said = capsys.readouterr()
  assert said.err.count('imagination: not drawn') == 1
  assert said.err.count('tsne: not drawn') == 1
  assert 'features' not in said.out + said.err  # nothing is encoded in vain


def test_pictures_of_other_commands_stay_in_the_index(single, tmp_path):
  draw(single, f'--out={tmp_path}', '--pictures=similarity', '--patch=1,2')
  draw(single, f'--out={tmp_path}', '--pictures=pca')
  listed = index(tmp_path)
  assert list(listed) == ['pca', 'similarity']
  assert '--patch=1,2' in listed['similarity']['command']
  assert '--patch=1,2' not in listed['pca']['command']


@pytest.mark.parametrize(
  ('options', 'expected'),
  [
    (['--pictures=pcaa'], "nearest to 'pcaa': pca"),
    (['--patch=6,0'], '--patch=6,0: expected 0 to 5 each'),
    (['--patch=1'], 'expected ROW,COLUMN from 0'),
    (['--image=cat'], '--image=cat: expected the number of a scene'),
    (['--count=1'], '--count=1: expected at least 2'),
    (['--images=missing'], '--images: .*missing does not exist'),
    (['--which=both'], 'invalid choice'),
    (['--out=file/x'], '--out: file/x cannot be made: Not a directory'),
    ([], '--out=DIR is needed'),
  ],
)
def test_bad_input_is_one_line(
  single, tmp_path, monkeypatch, options, expected
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'file').touch()
  out = [] if not options or 'out' in options[0] else [f'--out={tmp_path}']
  with pytest.raises(errors.UserError, match=expected) as caught:
    draw(single, *options, *out)
  assert '\n' not in str(caught.value)
  assert list(tmp_path.glob('*.png')) == []


def test_two_images_are_enough(run):
  pair = seen(run, count=2)
  assert pair.images.drawn == 1  # the other one is compared with
  for predicted in pair.predictions.values():
    assert len(predicted) == 1


def test_another_file_in_the_index_s_place(single, tmp_path):
  (tmp_path / visualize.INDEX).write_text('{"a": 1}')
  with pytest.raises(errors.UserError, match='not an index of pictures'):
    draw(single, f'--out={tmp_path}', '--pictures=pca')


class TestSubject:
  def test_masks_are_those_of_the_run(self, run):
    config = tiny.config()
    assert recipe.config_of(str(run)).to_dict() == config.to_dict()
    spec = recipe.mask_spec(recipe.config_of(str(run)), ARCHITECTURE)
    assert spec == pipeline.mask_spec(config)

  def test_other_weights_get_the_published_recipe(self):
    spec = recipe.mask_spec(None, ARCHITECTURE)
    assert spec.target_scale == (0.15, 0.2)
    assert spec.num_targets == 4

  def test_too_few_patches_have_no_blocks(self):
    with pytest.raises(errors.UserError, match='2 x 2 patches are too small'):
      recipe.mask_spec(None, Architecture(small_weights.SIZE, 4, 8))

  def test_over_training_starts_before_it(self, run):
    features = dict(seen(run).over_training())
    assert list(features) == ['before training', 'step 2', 'step 4']
    # This run has not been trained: its encoder is made from its seed.
    for later in ('step 2', 'step 4'):
      np.testing.assert_allclose(
        features[later], features['before training'], atol=1e-5
      )

  def test_later_checkpoints_say_nothing_of_an_earlier_one(self, run):
    earlier = seen(run / 'checkpoints' / '2')
    assert [name for name, _ in earlier.over_training()] == [
      'before training', 'step 2',
    ]  # fmt: skip

  def test_masked_images_are_not_compared_with(self, run):
    chosen = seen(run)
    assert chosen.images.drawn <= len(chosen.masks.context) < 8


class TestImages:
  @pytest.fixture
  def folder(self, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    for k in range(30):
      path = tmp_path / 'images' / f'class{k // 10}' / f'{k:02}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(np.full((20, 30, 3), k, np.uint8)).save(path)
    return tmp_path / 'images'

  def load(self, folder, count=12, image=None):
    return images.load(str(folder), count, image, transforms.EvalTransform(16))

  def test_all_classes_are_there(self, folder):
    loaded = self.load(folder)
    assert len(loaded) == 12
    assert np.bincount(loaded.labels['class']).tolist() == [4, 4, 4]
    assert set(loaded.labels['class'][: loaded.drawn]) == {0, 1, 2}
    assert loaded.pixels[:, 0, 0, 0].tolist() == [
      int(name[-6:-4]) for name in loaded.names
    ]

  def test_classes_of_one_image_each_are_no_label(self, folder):
    loaded = self.load(folder, count=3)
    assert len({name.split('/')[0] for name in loaded.names}) == 3
    assert loaded.labels == loaded.classes == {}

  def test_the_image_asked_for_comes_first(self, folder):
    for name in ('class1/13.png', '13.png'):
      loaded = self.load(folder, image=name)
      assert loaded.names[0] == 'class1/13.png'
      assert len(set(loaded.names)) == len(loaded) == 12

  def test_an_unknown_image_has_a_nearest(self, folder):
    with pytest.raises(errors.UserError, match=r'nearest: class1/13\.png'):
      self.load(folder, image='class1/133.png')

  def test_a_broken_image_is_not_replaced_when_it_is_asked_for(self, folder):
    (folder / 'class0' / '05.png').write_bytes(b'no image')
    with pytest.raises(errors.UserError, match=r'--image=05\.png: cannot be'):
      self.load(folder, image='05.png')

  def test_broken_images_are_left_out(self, folder, capsys):
    (folder / 'class0' / '05.png').write_bytes(b'no image')
    loaded = self.load(folder, count=30)
    assert len(loaded) == 29
    assert 'class0/05.png cannot be read' in capsys.readouterr().err
