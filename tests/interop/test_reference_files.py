"""Checkpoints in the structure of the authors' code."""

import dataclasses

import numpy as np
import peers
import pytest
import small_weights
from peers import interop_reference, published, torch

from ijepa_jax import convert, errors
from ijepa_jax.interop import names, reading

__all__ = ['published']  # a fixture

Encoder, Parallel = interop_reference.Encoder, interop_reference.Parallel


class Predictor(torch.nn.Module):
  def __init__(self, architecture, size):
    super().__init__()
    self.mask_token = torch.nn.Parameter(torch.zeros(1, 1, size.width))
    self.predictor_pos_embed = interop_reference.frozen(
      1, architecture.grid**2, size.width
    )
    self.predictor_embed = torch.nn.Linear(architecture.size.width, size.width)
    self.predictor_blocks = interop_reference.blocks(size)
    self.predictor_norm = torch.nn.LayerNorm(size.width)
    self.predictor_proj = torch.nn.Linear(size.width, architecture.size.width)


def optimizer(encoder, predictor):
  """The authors' four groups: what decays, then what does not."""

  def group(model, decays):
    return [
      p
      for name, p in model.named_parameters()
      if ('bias' not in name and p.ndim != 1) == decays
    ]

  excluded = {'WD_exclude': True, 'weight_decay': 0}
  return torch.optim.AdamW(
    [
      {'params': group(encoder, True)},
      {'params': group(predictor, True)},
      {'params': group(encoder, False)} | excluded,
      {'params': group(predictor, False)} | excluded,
    ]
  )


@pytest.fixture(scope='module')
def checkpoint():
  """After three updates; their gradients are noise."""
  held = small_weights.ARCHITECTURE
  encoder, target = Parallel(Encoder(held)), Parallel(Encoder(held))
  predictor = Parallel(Predictor(held, small_weights.PREDICTOR))
  opt = optimizer(encoder, predictor)
  generator = torch.Generator().manual_seed(0)
  for _ in range(3):
    for model in (encoder, predictor):
      for p in model.parameters():
        if p.requires_grad:
          p.grad = torch.randn(p.shape, generator=generator)
    opt.step()
  with torch.no_grad():
    for p in target.parameters():
      p.add_(0.01)
  return {
    'encoder': encoder.state_dict(),
    'predictor': predictor.state_dict(),
    'opt': opt.state_dict(),
    'scaler': None,
    'target_encoder': target.state_dict(),
    'epoch': 2,
    'loss': 0.5,
    'batch_size': 8,
    'world_size': 1,
    'lr': 1e-3,
  }


@pytest.fixture
def file(checkpoint, tmp_path):
  torch.save(checkpoint, tmp_path / 'jepa.pth.tar')
  return tmp_path / 'jepa.pth.tar'


PARTS = ('encoder', 'target_encoder', 'predictor')


def test_a_checkpoint_comes_back_bitwise(file, checkpoint, tmp_path):
  middle, said = small_weights.run(
    file, tmp_path / 'm', '--to=orbax', '--heads=2'
  )
  assert 'left out' not in said
  back, _ = small_weights.run(middle, tmp_path / 'back', '--to=reference')
  again = torch.load(back, weights_only=True)
  for part in PARTS:
    assert list(again[part]) == list(checkpoint[part])
    peers.assert_same_state(again[part], checkpoint[part])
  assert again['epoch'] == 2
  theirs, ours = checkpoint['opt'], again['opt']
  assert ours['state'].keys() == theirs['state'].keys()
  for number, state in theirs['state'].items():
    peers.assert_same_state(ours['state'][number], state)
  for a, b in zip(ours['param_groups'], theirs['param_groups'], strict=True):
    assert a['params'] == b['params']
    assert a.get('WD_exclude') == b.get('WD_exclude')


def test_what_we_write_continues_in_pytorch(file, checkpoint, tmp_path):
  back, _ = small_weights.run(
    file, tmp_path / 'back', '--to=reference', '--heads=2'
  )
  again = torch.load(back, weights_only=True)
  held = small_weights.ARCHITECTURE
  encoder = Parallel(Encoder(held))
  predictor = Parallel(Predictor(held, small_weights.PREDICTOR))
  encoder.load_state_dict(again['encoder'])
  predictor.load_state_dict(again['predictor'])
  opt = optimizer(encoder, predictor)
  opt.load_state_dict(again['opt'])
  for p in [*encoder.parameters(), *predictor.parameters()]:
    if p.requires_grad:
      p.grad = torch.ones_like(p)
  opt.step()
  assert opt.state_dict()['state'][1]['step'] == 4  # 0 is frozen


def test_moments_are_those_of_their_parameters(file, checkpoint):
  held = reading.open_weights(str(file), heads=2)
  state = checkpoint['opt']['state']
  groups = checkpoint['opt']['param_groups']
  # First and last of all: the encoder's patches and the predictor's last bias.
  # The frozen positions are among the parameters, without a state.
  assert groups[0]['params'][0] not in state
  first = state[groups[0]['params'][1]]['exp_avg']
  kernel = held.moments.mean['encoder']['patch_embed.kernel']
  np.testing.assert_array_equal(names.PATCHES.to_theirs(kernel), first.numpy())
  last = state[groups[3]['params'][-1]]['exp_avg_sq']
  bias = held.moments.square['predictor']['proj.bias']
  np.testing.assert_array_equal(bias, last.numpy())
  assert held.moments.count == 3


def test_other_parameter_groups_are_left_out_and_said(checkpoint, tmp_path):
  changed = checkpoint | {'opt': dict(checkpoint['opt'])}
  changed['opt']['param_groups'] = checkpoint['opt']['param_groups'][:2]
  torch.save(changed, tmp_path / 'a')
  _, said = small_weights.run(
    tmp_path / 'a', tmp_path / 'b', '--to=orbax', '--heads=2'
  )
  assert 'left out: opt, whose parameter groups' in said


def test_every_published_width_is_written_bitwise(published, tmp_path):
  file = small_weights.write(published, tmp_path / 'a', 'reference')
  content = torch.load(file, weights_only=True)
  tensors = small_weights.tensors_of(published, names.ENCODER)
  model = Encoder(published.architecture)
  assert list(content['encoder']) == [f'module.{n}' for n in model.state_dict()]
  for part in ('encoder', 'target_encoder'):
    for name, tensor in content[part].items():
      np.testing.assert_array_equal(
        tensor.numpy(), tensors[name.removeprefix('module.')]
      )


def test_a_single_encoder_is_written_as_both_and_read_again(
  published, tmp_path
):
  file = small_weights.write(published, tmp_path / 'a', 'reference')
  again = reading.open_weights(str(file))
  small_weights.assert_same(again.target, published.target)
  small_weights.assert_same(again.context, published.target)
  assert again.ours


@pytest.mark.parametrize('middle', ['orbax', 'flax', 'timm'])
def test_how_far_training_was_survives_other_formats(middle, tmp_path):
  held = small_weights.full()
  a = small_weights.write(held, tmp_path / 'a', middle)
  b, _ = small_weights.run(a, tmp_path / 'b', '--to=reference')
  assert torch.load(b, weights_only=True)['epoch'] == 2
  again = reading.open_weights(str(b), heads=2)
  assert again.progress == {'step': 7, 'epoch': 2}


def test_without_an_epoch_none_is_read_again(tmp_path):
  held = dataclasses.replace(small_weights.full(), progress={'step': 7})
  a = small_weights.write(held, tmp_path / 'a', 'reference')
  assert reading.open_weights(str(a), heads=2).progress == {'step': 7}


@pytest.mark.parametrize(
  'mark', [[1], {'crop': 'all'}, {'trained_here': 1}, {'step': -1}]
)
def test_a_mark_that_cannot_be_is_named(mark, checkpoint, tmp_path):
  torch.save(checkpoint | {'ijepa_jax': mark}, tmp_path / 'a')
  with pytest.raises(errors.UserError, match=r'a: ijepa_jax(\.\w+)? is '):
    reading.open_weights(str(tmp_path / 'a'), heads=2)


@pytest.mark.parametrize('part', PARTS)
def test_a_missing_tensor_is_named(part, checkpoint, tmp_path, capsys):
  key = list(checkpoint[part])[-1]
  less = {k: v for k, v in checkpoint[part].items() if k != key}
  torch.save(checkpoint | {part: less}, tmp_path / 'a')
  with pytest.raises(SystemExit) as caught, errors.exit_cleanly():
    convert.main(
      [str(tmp_path / 'a'), str(tmp_path / 'b'), '--to=orbax', '--heads=2']
    )
  assert caught.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert f'{part}.{key} is missing' in line


def test_without_a_predictor_or_target_what_is_there_is_read(
  checkpoint, tmp_path
):
  torch.save({'encoder': checkpoint['encoder'], 'epoch': 1}, tmp_path / 'a')
  held = reading.open_weights(str(tmp_path / 'a'), heads=2)
  assert held.single
  assert held.predictor is None
  assert held.progress == {'epoch': 1}
