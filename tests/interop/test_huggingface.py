"""Against the real IJepaModel."""

import numpy as np
import peers
import pytest
import small_weights
from peers import published, torch, transformers
from PIL import Image

from ijepa_jax import encoder
from ijepa_jax.interop import names, reading

__all__ = ['published']  # a fixture


def config(**changes):
  small = {
    'hidden_size': 44,
    'num_hidden_layers': 3,
    'num_attention_heads': 2,
    'intermediate_size': 192,
    'patch_size': 4,
    'image_size': 12,
    'layer_norm_eps': 1e-6,
  }
  return transformers.IJepaConfig(**small | changes)


@pytest.fixture(scope='module')
def model():
  return peers.randomise(transformers.IJepaModel(config()))


def load(folder):
  """The model, and what was amiss when it was loaded."""
  return transformers.AutoModel.from_pretrained(
    folder, output_loading_info=True
  )


def test_auto_model_computes_what_we_compute(published, tmp_path):
  folder = small_weights.write(published, tmp_path / 'a', 'huggingface')
  model, info = load(folder)
  assert not any(info.values()), info
  assert type(model) is transformers.IJepaModel
  assert model.config.layer_norm_eps == 1e-6
  x = peers.images(published.architecture.image_size)
  with torch.no_grad():
    theirs = model.eval()(peers.nchw(x)).last_hidden_state
  np.testing.assert_allclose(peers.ours(folder, x), theirs, atol=2e-5)


def test_another_image_size_computes_the_same(model, tmp_path):
  model.save_pretrained(tmp_path / 'a')
  x = np.random.default_rng(0).normal(size=(1, 20, 28, 3)).astype(np.float32)
  with torch.no_grad():
    theirs = model(peers.nchw(x), interpolate_pos_encoding=True)
  mine = peers.ours(tmp_path / 'a', x)
  np.testing.assert_allclose(mine, theirs.last_hidden_state, atol=2e-5)


def test_auto_image_processor_prepares_images_as_we_do(tmp_path):
  held = small_weights.single(peers.CLASSES['tiny, 16'], ours=True)
  folder = small_weights.write(held, tmp_path / 'a', 'huggingface')
  processor = transformers.AutoImageProcessor.from_pretrained(folder)
  rows, columns = np.mgrid[0:120, 0:150]
  smooth = np.stack([rows, columns, rows + columns], -1).astype(np.uint8)
  image = Image.fromarray(smooth[:, :100])
  theirs = processor(image, return_tensors='np')['pixel_values'][0]
  mine = encoder.load_encoder(str(folder)).preprocess(image)[0]
  assert theirs.shape == (3, 48, 48)
  difference = np.abs(theirs.transpose(1, 2, 0) - mine)
  assert np.median(difference) < 2.1 / 255 / 0.225
  assert difference.max() < 0.2


def through_ours(src, folder):
  """Their model after a way through our format and back."""
  middle, _ = small_weights.run(src, folder / 'middle', '--to=flax')
  back, said = small_weights.run(middle, folder / 'back', '--to=huggingface')
  return load(back)[0].state_dict(), said


@pytest.mark.parametrize('shard', [None, '40KB'])
def test_save_pretrained_comes_back_bitwise(shard, model, tmp_path):
  limit = {'max_shard_size': shard} if shard else {}
  model.save_pretrained(tmp_path / 'a', **limit)
  assert len(list((tmp_path / 'a').glob('*-of-*'))) > 2 or shard is None
  again, _ = through_ours(tmp_path / 'a', tmp_path)
  peers.assert_same_state(again, model.state_dict())


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('file', ['safetensors', 'torch'])
def test_half_precision_is_read_exactly(dtype, file, tmp_path):
  model = peers.randomise(transformers.IJepaModel(config()))
  model = model.to(getattr(torch, dtype))
  model.save_pretrained(tmp_path / 'a')
  if file == 'torch':
    (tmp_path / 'a' / 'model.safetensors').unlink()
    torch.save(model.state_dict(), tmp_path / 'a' / 'pytorch_model.bin')
  again, _ = through_ours(tmp_path / 'a', tmp_path)
  peers.assert_same_state(again, model.float().state_dict())


def test_a_state_dict_with_the_names_in_memory_comes_back(model, tmp_path):
  state = model.state_dict()
  assert set(state) == set(
    small_weights.tensors_of(small_weights.single(), names.HUGGINGFACE_5)
  )
  (tmp_path / 'a').mkdir()
  torch.save(state, tmp_path / 'a' / 'weights.bin')
  middle, _ = small_weights.run(
    tmp_path / 'a' / 'weights.bin', tmp_path / 'm', '--to=flax', '--heads=2'
  )
  back, _ = small_weights.run(middle, tmp_path / 'b', '--to=huggingface')
  peers.assert_same_state(load(back)[0].state_dict(), state)


def test_of_a_classifier_the_encoder_is_taken(tmp_path):
  model = transformers.IJepaForImageClassification(config(num_labels=5))
  peers.randomise(model).save_pretrained(tmp_path / 'a')
  middle, said = small_weights.run(tmp_path / 'a', tmp_path / 'm', '--to=flax')
  assert 'left out: classifier' in said
  back, _ = small_weights.run(middle, tmp_path / 'b', '--to=huggingface')
  peers.assert_same_state(load(back)[0].state_dict(), model.ijepa.state_dict())


def test_of_a_model_with_a_pooler_the_encoder_is_taken(tmp_path):
  model = transformers.IJepaModel(config(), add_pooling_layer=True)
  peers.randomise(model).save_pretrained(tmp_path / 'a')
  held = reading.open_weights(str(tmp_path / 'a'))
  assert held.left_out == ('pooler.dense',)


def test_another_eps_is_said(tmp_path):
  model = transformers.IJepaModel(config(layer_norm_eps=1e-12))
  peers.randomise(model).save_pretrained(tmp_path / 'a')
  _, said = small_weights.run(tmp_path / 'a', tmp_path / 'b', '--to=flax')
  assert 'layer_norm_eps=1e-12' in said
