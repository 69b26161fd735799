"""`benchmarks/parity.py`: what it reads, prints and returns."""

import json
import shutil

import cases
import numpy as np
import parity
import parity_files
import parity_report
import plain_numpy
import pytest
import small_weights

import ijepa_jax


def exit_code(*arguments):
  """0 where the tool comes back, as a program does."""
  try:
    parity.main([str(x) for x in arguments])
  except SystemExit as error:
    return error.code
  return 0


def folder_with(path, **files):
  """A folder of golden files, given as dicts of arrays by name."""
  path.mkdir(exist_ok=True)
  shutil.copy(cases.GOLDEN / 'config.json', path)
  for name, arrays in files.items():
    np.savez(path / f'{name}.npz', **arrays)
  return path


# --- Golden numbers of other sizes -----------------------------------------


def test_other_sizes_and_several_contexts(tmp_path, capsys):
  plain_numpy.write_golden(tmp_path)
  assert exit_code('--golden', tmp_path) == 0
  printed = capsys.readouterr().out
  for quantity in (
    'target_full',
    'target_masked',
    'context_out',
    'predictor_out',
    'loss_f64',
    'l2_loss_f64',
    'act/context_block02',
    'act/predictor_block00',
    'padded: gradients',
  ):
    assert f'model_numpy            {quantity}' in printed
  assert 'skipped: grad/encoder: not in the file' in printed


def hugging_face(path, *sides):
  """A model with what our own encoder computes of images of these sides."""
  folder = path / 'hf' / 'mine'
  small_weights.write(small_weights.golden(), folder, 'huggingface')
  encoder = ijepa_jax.load_encoder(str(folder))
  arrays = {}
  for height, width in [(48, 48), *sides]:
    name = '' if not arrays else f'_{height}x{width}'
    images = np.random.default_rng(0).normal(size=(1, 3, height, width))
    arrays[f'pixel_values{name}'] = images
    whole = images[..., : height // 8 * 8, : width // 8 * 8]
    features = encoder(whole.transpose(0, 2, 3, 1))
    arrays[f'last_hidden_state{name}'] = features
  np.savez(path / 'hf' / 'mine_io.npz', **arrays)
  return path


def test_hugging_face_at_other_resolutions(tmp_path, capsys):
  folder = hugging_face(tmp_path, (56, 56), (40, 64))
  assert exit_code('--golden', folder) == 0
  printed = capsys.readouterr().out
  for name in ('', '_56x56', '_40x64'):
    assert f'hf/mine                last_hidden_state{name} ' in printed


# --- Exit codes ------------------------------------------------------------


def test_what_is_absent_is_named(tmp_path, capsys):
  folder = folder_with(tmp_path, schedules=cases.golden('schedules'))
  assert exit_code('--golden', folder) == 0
  printed = capsys.readouterr().out
  for pattern in ('model_*.npz', 'eps_probe*.npz', 'traj_*.npz', 'hf/*'):
    assert pattern in printed
  assert '24 compared, 0 failed, 7 skipped' in printed


@pytest.mark.parametrize('key', ['lr', 'wd', 'momentum'])
def test_a_changed_number_fails(tmp_path, capsys, key):
  schedules = cases.golden('schedules')
  schedules[f'in22k_vitg16_ep44/{key}'][7] *= 1 + 1e-8
  folder = folder_with(tmp_path, schedules=schedules)
  assert exit_code('--golden', folder) == 1
  lines = capsys.readouterr().out.splitlines()
  failed, *_ = [line for line in lines if 'FAIL' in line]
  assert failed.split()[:2] == ['in22k_vitg16_ep44', key]


def test_unknown_schedules_are_named_unless_they_are_described(
  tmp_path, capsys
):
  schedules = cases.golden('traj_micro')
  schedules = {
    f'{config}/{key}': schedules[key]
    for key in ('lr', 'wd', 'momentum')
    for config in ('mine', 'yours')
  }
  folder = folder_with(tmp_path, schedules=schedules)
  config = parity_files.read_json(folder / 'config.json')
  config['mine'] = config['micro']['traj']['schedule']
  (folder / 'config.json').write_text(json.dumps(config))
  assert exit_code('--golden', folder) == 0
  printed = capsys.readouterr().out
  assert 'yours                  skipped' in printed
  assert '6 compared, 0 failed' in printed


# --- Bad input: one line, exit code 2 --------------------------------------


def without(arrays, *names):
  return {name: array for name, array in arrays.items() if name not in names}


def no_directory(path):
  return path / 'nowhere'


def nothing(path):
  return path


def damaged(path):
  folder = folder_with(path, schedules=cases.golden('schedules'))
  content = (folder / 'schedules.npz').read_bytes()
  (folder / 'schedules.npz').write_bytes(content[: len(content) // 2])
  return folder


def missing_masks(path):
  model = cases.golden('model_micro')
  return folder_with(path, model_micro=without(model, 'masks_pred'))


def missing_tensor(path):
  model = cases.golden('model_micro')
  return folder_with(path, model_micro=without(model, 'encoder/norm.bias'))


def patch_out_of_range(path):
  model = cases.golden('model_micro')
  model['masks_enc'][0, 0, 0] = 36
  return folder_with(path, model_micro=model)


def unknown_name(path):
  return folder_with(path, model_other=cases.golden('model_micro'))


def other_sizes(path):
  folder = folder_with(path, model_micro=cases.golden('model_micro'))
  config = parity_files.read_json(folder / 'config.json')
  config['micro']['depth'] = 3
  (folder / 'config.json').write_text(json.dumps(config))
  return folder


def other_schedule(path):
  folder = folder_with(path, traj_micro=cases.golden('traj_micro'))
  config = parity_files.read_json(folder / 'config.json')
  del config['micro']['traj']['schedule']['ema']
  (folder / 'config.json').write_text(json.dumps(config))
  return folder


def half_a_patch(path):
  return hugging_face(path, (48, 52))


@pytest.mark.parametrize(
  ('make', 'said'),
  [
    (no_directory, 'no directory'),
    (nothing, 'nothing to compare'),
    (damaged, 'schedules.npz'),
    (missing_masks, 'masks_pred is missing'),
    (missing_tensor, 'norm.bias'),
    (patch_out_of_range, 'patches from 0 to 36, there are 36'),
    (unknown_name, 'expected an entry other'),
    (other_sizes, 'depth is 3, the tensors have 2'),
    (other_schedule, 'lacks ema'),
    (half_a_patch, 'multiples of the patch size 8'),
  ],
)
def test_bad_input(tmp_path, capsys, make, said):
  assert exit_code('--golden', make(tmp_path)) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('error: ')
  assert said in line


# --- Differences -----------------------------------------------------------


@pytest.mark.parametrize(
  ('ours', 'theirs'),
  [
    ([1.0, np.nan, 2.0], [1.0, 1.5, 2.0]),
    ([np.nan, 1.0], [np.nan, 1.0]),
    ([[1.0, 2.0]], [1.0, 2.0]),  # would be broadcast
    ([], []),
  ],
)
def test_no_number_and_another_shape_never_pass(ours, theirs):
  report = parity_report.Report()
  difference = parity_report.difference(np.array(ours), np.array(theirs))
  assert not report.add('file', 'quantity', difference, 1.0).passed
  assert len(report.failed) == 1


def test_worst_tensor_is_named(capsys):
  report = parity_report.Report()
  theirs = {'a': np.ones(3), 'blocks.0.attn.qkv.bias': np.ones(6)}
  ours = {'a': np.ones(3), 'blocks.0.attn.qkv.bias': np.arange(6) / 5}
  report.add_tensors('file', 'grad', ours, theirs, (1e-5, 1.0))
  assert [row.passed for row in report.rows] == [False, True]
  assert 'the worst is blocks.0.attn.qkv.bias' in capsys.readouterr().out
