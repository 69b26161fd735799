"""Spellings of the same weights."""

import json

import ml_dtypes
import numpy as np
import pytest
import small_weights
from safetensors import numpy as safetensors

from ijepa_jax.interop import names, reading
from ijepa_jax.interop.weights import Architecture
from ijepa_jax.models import sizes

CONFIG = {
  'model_type': 'ijepa',
  'num_attention_heads': 2,
  'layer_norm_eps': 1e-6,
}


@pytest.fixture(
  params=[names.HUGGINGFACE, names.HUGGINGFACE_5],
  ids=['on the hub', 'in transformers 5'],
)
def hugging_face(request):
  """Tensors under both kinds of names."""
  return small_weights.tensors_of(small_weights.single(), request.param)


def save(tensors, folder, config=CONFIG):
  folder.mkdir()
  safetensors.save_file(tensors, folder / 'model.safetensors')
  (folder / 'config.json').write_text(json.dumps(config))
  return str(folder)


def assert_is_the_encoder(held):
  small_weights.assert_same(held.target, small_weights.single().target)
  assert held.architecture == small_weights.ARCHITECTURE
  assert held.single


def test_both_kinds_of_hugging_face_names_are_read(hugging_face, tmp_path):
  held = reading.open_weights(save(hugging_face, tmp_path / 'a'))
  assert_is_the_encoder(held)
  assert held.format == 'Hugging Face'
  assert held.left_out == ()
  assert not held.ours


def test_of_a_classifier_the_encoder_is_read(hugging_face, tmp_path):
  tensors = {f'ijepa.{name}': x for name, x in hugging_face.items()}
  tensors['classifier.weight'] = np.zeros((5, 44), np.float32)
  tensors['classifier.bias'] = np.zeros(5, np.float32)
  folder = save(tensors, tmp_path / 'a')
  held = reading.open_weights(folder)
  assert_is_the_encoder(held)
  assert held.left_out == ('classifier',)
  _, said = small_weights.run(folder, tmp_path / 'b', '--to=flax')
  assert 'left out: classifier\n' in said


@pytest.mark.parametrize('prefix', ['module.', 'model.', 'module.ijepa.'])
def test_usual_prefixes_are_taken_off(prefix, hugging_face, tmp_path):
  tensors = {prefix + name: x for name, x in hugging_face.items()}
  assert_is_the_encoder(reading.open_weights(save(tensors, tmp_path / 'a')))


def test_another_eps_is_said(hugging_face, tmp_path):
  config = CONFIG | {'layer_norm_eps': 1e-12}
  held = reading.open_weights(save(hugging_face, tmp_path / 'a', config))
  assert 'layer_norm_eps=1e-12' in held.left_out[0]


def test_shards_are_put_together(hugging_face, tmp_path):
  where = {}
  for number in range(3):
    part = dict(list(hugging_face.items())[number::3])
    file = f'model-0000{number + 1}-of-00003.safetensors'
    safetensors.save_file(part, tmp_path / file)
    where |= dict.fromkeys(part, file)
  index = tmp_path / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': where}))
  assert_is_the_encoder(reading.open_weights(str(tmp_path), heads=2))
  assert_is_the_encoder(reading.open_weights(str(index), heads=2))


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_types_are_read_exactly(dtype, hugging_face, tmp_path):
  tensors = {name: x.astype(dtype) for name, x in hugging_face.items()}
  held = reading.open_weights(save(tensors, tmp_path / 'a'))
  expected = {
    path: x.astype(dtype).astype(np.float32)
    for path, x in small_weights.single().target.items()
  }
  small_weights.assert_same(held.target, expected)


def test_heads_of_a_published_width_are_known(tmp_path):
  size = sizes.Size(192, 1, 3)
  architecture = Architecture(size, 4, 8)
  held = small_weights.single(architecture)
  tensors = small_weights.tensors_of(held, names.ENCODER)
  file = tmp_path / 'weights'
  safetensors.save_file(tensors, file)
  assert reading.open_weights(str(file)).architecture == architecture


def test_heads_of_the_config_count_more_than_those_of_the_width(tmp_path):
  size = sizes.Size(192, 1, 6)
  held = small_weights.single(Architecture(size, 4, 8))
  for format in ('flax', 'huggingface', 'timm', 'orbax'):
    path = small_weights.write(held, tmp_path / format, format)
    assert reading.open_weights(str(path)).architecture.size.heads == 6


def test_more_than_ten_blocks_stay_in_order(tmp_path):
  size = sizes.Size(12, 13, 2)
  architecture = Architecture(size, 4, 8)
  held = small_weights.single(architecture)
  path = small_weights.write(held, tmp_path / 'a', 'timm')
  small_weights.assert_same_weights(held, reading.open_weights(str(path)))
