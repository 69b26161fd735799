"""PyTorch files: only tensors and plain values are ever read."""

import os
import pickle
import zipfile

import numpy as np
import pytest
import small_weights
from peers import torch

from ijepa_jax import convert, errors
from ijepa_jax.interop import names, reading


@pytest.fixture
def state():
  """A state dict with the reference's names."""
  tensors = small_weights.tensors_of(small_weights.single(), names.ENCODER)
  return {name: torch.from_numpy(x) for name, x in tensors.items()}


def refusal(src, folder):
  """The line that the command ends with; it must leave nothing behind."""
  before = small_weights.listing(folder)
  with pytest.raises(SystemExit) as caught, errors.exit_cleanly():
    convert.main([str(src), str(folder / 'dst'), '--to=flax', '--heads=2'])
  assert caught.value.code == 2
  assert small_weights.listing(folder) == before


class Runs:
  """Runs a command when it is unpickled."""

  def __init__(self, command):
    self._command = command

  def __reduce__(self):
    return os.system, (self._command,)


@pytest.mark.parametrize('zipped', [True, False])
def test_a_file_that_would_run_a_program_is_refused(
  zipped, state, tmp_path, capsys
):
  witness = tmp_path / 'ran'
  content = {'encoder': state, 'x': Runs(f'touch {witness}')}
  torch.save(
    content, tmp_path / 'bad.pth', _use_new_zipfile_serialization=zipped
  )
  refusal(tmp_path / 'bad.pth', tmp_path)
  assert not witness.exists()
  (line,) = capsys.readouterr().err.splitlines()
  assert 'bad.pth' in line
  assert 'system' in line


@pytest.mark.parametrize('protocol', [0, 2, 4, 5])
def test_a_plain_pickle_is_refused(protocol, tmp_path, capsys):
  witness = tmp_path / 'ran'
  content = {'x': np.zeros(3), 'y': Runs(f'touch {witness}')}
  (tmp_path / 'a.pkl').write_bytes(pickle.dumps(content, protocol))
  refusal(tmp_path / 'a.pkl', tmp_path)
  assert not witness.exists()
  (line,) = capsys.readouterr().err.splitlines()
  assert 'a.pkl' in line


def test_a_file_with_numpy_arrays_is_refused(tmp_path, capsys):
  torch.save({'blocks': np.zeros(3)}, tmp_path / 'a.pth')
  refusal(tmp_path / 'a.pth', tmp_path)
  (line,) = capsys.readouterr().err.splitlines()
  assert 'more than tensors' in line
  assert 'numpy' in line


@pytest.mark.parametrize('share', [0.1, 0.5, 0.99])
@pytest.mark.parametrize('zipped', [True, False])
def test_a_truncated_file_is_refused(zipped, share, state, tmp_path, capsys):
  file = tmp_path / 'a.pth'
  torch.save(state, file, _use_new_zipfile_serialization=zipped)
  whole = file.read_bytes()
  file.write_bytes(whole[: int(share * len(whole))])
  refusal(file, tmp_path)
  (line,) = capsys.readouterr().err.splitlines()
  assert 'truncated' in line


def test_a_zip_of_something_else_is_refused(tmp_path, capsys):
  with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as file:
    file.writestr('holiday.txt', 'sunny')
  refusal(tmp_path / 'a.zip', tmp_path)
  (line,) = capsys.readouterr().err.splitlines()
  assert 'a.zip' in line


@pytest.mark.parametrize('content', ['a tensor', 'a list', 'a number'])
def test_a_file_of_other_content_is_refused(content, tmp_path, capsys):
  value = {
    'a tensor': torch.zeros(3),
    'a list': [torch.zeros(3)],
    'a number': 3,
  }
  torch.save(value[content], tmp_path / 'a.pth')
  refusal(tmp_path / 'a.pth', tmp_path)
  (line,) = capsys.readouterr().err.splitlines()
  assert 'holds no I-JEPA encoder' in line


def test_a_file_that_holds_itself_is_refused(state, tmp_path, capsys):
  state['again'] = state
  torch.save(state, tmp_path / 'a.pth')
  refusal(tmp_path / 'a.pth', tmp_path)
  (line,) = capsys.readouterr().err.splitlines()
  assert 'a.pth cannot be read' in line


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('wrapper', ['', 'module.', 'state_dict', 'model'])
def test_both_formats_and_usual_wrappers_are_read(
  zipped, wrapper, state, tmp_path
):
  if wrapper.endswith('.'):
    state = {wrapper + name: tensor for name, tensor in state.items()}
  elif wrapper:
    state = {wrapper: state}
  torch.save(state, tmp_path / 'a', _use_new_zipfile_serialization=zipped)
  held = reading.open_weights(str(tmp_path / 'a'), heads=2)
  small_weights.assert_same(held.target, small_weights.single().target)


def test_tensors_that_share_memory_or_are_views_are_read(state, tmp_path):
  both = torch.stack([state['norm.weight'], state['norm.bias']], 1)
  state |= {'norm.weight': both[:, 0], 'norm.bias': both[:, 1]}
  state['pos_embed'] = torch.nn.Parameter(state['pos_embed'])
  torch.save(state, tmp_path / 'a')
  held = reading.open_weights(str(tmp_path / 'a'), heads=2)
  small_weights.assert_same(held.target, small_weights.single().target)


def test_a_file_larger_than_what_is_mapped_is_read(
  state, tmp_path, monkeypatch
):
  monkeypatch.setattr('ijepa_jax.interop.tensors._MAPPED', 1000)
  torch.save(state, tmp_path / 'a')
  held = reading.open_weights(str(tmp_path / 'a'), heads=2)
  small_weights.assert_same(held.target, small_weights.single().target)
