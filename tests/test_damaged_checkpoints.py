"""Checkpoints that a disk, a copy or a person has changed."""

import json
import os
import pathlib
import random
import shutil

import pytest
import tiny
from etils import epath

from ijepa_jax import convert, encoder, errors, integrity, train

STEPS = 6


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A run with checkpoints 2, 4 and 6."""
  workdir = tmp_path_factory.mktemp('finished')
  train.train(tiny.config(total_steps=STEPS), workdir)
  return workdir


@pytest.fixture
def run(finished, tmp_path):
  """A copy that a test may break."""
  return pathlib.Path(shutil.copytree(finished, tmp_path / 'run'))


def largest_file(folder):
  files = (path for path in folder.rglob('*') if path.is_file())
  return max(files, key=lambda path: path.stat().st_size)


def flip(file):
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)


def cut(file):
  file.write_bytes(file.read_bytes()[:-100])


def test_every_changed_file_is_found(run):
  folder = run / 'checkpoints' / '6'
  assert integrity.damage(epath.Path(folder)) is None
  listed = json.loads((folder / integrity.FILE).read_text())['crc32']
  rng = random.Random(0)
  for name in listed:
    file = folder / name
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
    for content in (changed, whole[:-1], whole + b' ', b''):
      file.write_bytes(content)
      assert name in integrity.damage(epath.Path(folder))
    file.unlink()
    assert name in integrity.damage(epath.Path(folder))
    file.write_bytes(whole)
  assert {'meta/metadata', 'state/_METADATA'} <= listed.keys()


def test_processes_look_at_all_files_between_them(run):
  folder = run / 'checkpoints' / '6'
  flip(largest_file(folder / 'state'))
  found = [integrity.damage(epath.Path(folder), n, 3) for n in range(3)]
  assert [text is None for text in found].count(False) == 1


@pytest.mark.parametrize('change', [flip, cut, pathlib.Path.unlink])
def test_a_changed_file_stops_the_run_and_the_last_good_step_is_named(
  run, change
):
  change(largest_file(run / 'checkpoints' / '6' / 'state'))
  flip(largest_file(run / 'checkpoints' / '4' / 'state'))
  rows = tiny.rows(run)
  with pytest.raises(errors.UserError) as caught:
    train.train(tiny.config(total_steps=STEPS), run)
  assert 'checkpoints/6' in str(caught.value)
  assert 'last good step: 2, from which --config.checkpoint.step=2' in str(
    caught.value
  )
  assert tiny.rows(run) == rows


def test_a_checkpoint_without_a_part_names_the_last_good_step(run):
  shutil.rmtree(run / 'checkpoints' / '6' / 'meta')
  with pytest.raises(errors.UserError, match='last good step: 4'):
    train.train(tiny.config(total_steps=STEPS), run)


def test_checkpoint_step_goes_back_and_destroys_nothing(run, finished, capfd):
  flip(largest_file(run / 'checkpoints' / '6' / 'state'))
  config = tiny.config(total_steps=STEPS, checkpoint__step=2)
  train.train(config, run)
  said = capfd.readouterr().err
  assert 'going back to step 2' in said
  assert {path.name for path in (run / 'set_aside').iterdir()} == {
    '4',
    '6',
    'metrics.jsonl',
  }
  tiny.assert_same_run(run, finished, STEPS)
  # The same command goes on from there, and does not go back again.
  train.train(config, run)
  said = capfd.readouterr().err
  assert 'checkpoints/6' in said
  assert 'going back' not in said


def test_a_run_that_went_back_may_go_back_from_a_damaged_step(run):
  config = tiny.config(total_steps=STEPS, checkpoint__step=2)
  train.train(config, run)
  flip(largest_file(run / 'checkpoints' / '6' / 'state'))
  train.train(config, run)
  names = {path.name for path in (run / 'set_aside').iterdir()}
  assert names == {'4', '4.1', '6', '6.1', 'metrics.jsonl', 'metrics.jsonl.1'}


def test_a_step_that_is_not_there_is_one_line(run):
  config = tiny.config(total_steps=STEPS, checkpoint__step=3)
  with pytest.raises(errors.UserError, match='there: 2, 4, 6'):
    train.train(config, run)


def test_a_run_whose_checkpoints_are_gone_does_not_start_again(run):
  shutil.rmtree(run / 'checkpoints')
  rows = tiny.rows(run)
  with pytest.raises(errors.UserError, match='up to step 6'):
    train.train(tiny.config(total_steps=STEPS), run)
  assert tiny.rows(run) == rows


def test_order_of_checkpoints_is_that_of_steps_not_of_clocks(run, capfd):
  for age, step in enumerate((6, 4, 2)):  # the newest by the clock is step 2
    for path in (run / 'checkpoints' / str(step)).rglob('*'):
      os.utime(path, (1e9 + 1e8 * age, 4e9 * age))
  train.train(tiny.config(total_steps=STEPS), run)
  assert 'checkpoints/6' in capfd.readouterr().err


def test_damaged_weights_are_not_used(run, tmp_path):
  flip(largest_file(run / 'checkpoints' / '6' / 'state'))
  source = str(run)
  with pytest.raises(errors.UserError, match=r'is damaged.*checkpoints/4'):
    encoder.load_encoder(source)
  config = tiny.config(total_steps=1, init_from=source)
  with pytest.raises(errors.UserError, match='is damaged'):
    train.train(config, tmp_path / 'other')
  with pytest.raises(errors.UserError, match='is damaged'):
    convert.main([source, str(tmp_path / 'out'), '--to=flax'])
