"""Spellings of the same weights."""

import json

import ml_dtypes
import numpy as np
import pytest
import small_weights
from safetensors import numpy as safetensors

from ijepa_jax import encoder, errors
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


def described(tmp_path, format):
  """Weights of a format, and the file that describes them."""
  path = small_weights.write(small_weights.full(), tmp_path / 'a', format)
  if format != 'orbax':
    return path, path / 'config.json'
  (path / 'meta' / 'checksums.json').unlink()  # as of who has none
  return path, path / 'meta' / 'metadata'


def change(file, key, value):
  """Sets a dotted key of a JSON file; `...` takes it out."""
  content = json.loads(file.read_text())
  *outer, last = key.split('.')
  section = content
  for name in outer:
    section = section[name]
  if value is ...:
    del section[last]
  else:
    section[last] = value
  file.write_text(json.dumps(content))


@pytest.mark.parametrize(
  ('format', 'key', 'value'),
  [
    ('flax', 'ijepa_jax', [1]),
    ('flax', 'ijepa_jax.trained_here', 'no'),
    ('flax', 'ijepa_jax.crop', 0),
    ('flax', 'ijepa_jax.step', -1),
    ('flax', 'ijepa_jax.epoch', True),
    ('flax', 'architecture', 'small'),
    ('flax', 'architecture.width', {}),
    ('flax', 'architecture.depth', ...),
    ('flax', 'architecture.heads', 2.5),
    ('flax', 'architecture.heads', ...),
    ('flax', 'predictor', [1]),
    ('flax', 'predictor.heads', ...),
    ('flax', 'predictor.hidden', ...),
    ('flax', 'predictor.width', '24'),
    ('flax', 'predictor.heads', 10**30),
    ('huggingface', 'hidden_size', '384'),
    ('huggingface', 'image_size', None),
    ('huggingface', 'image_size', [12, 8]),
    ('huggingface', 'num_hidden_layers', 4),
    ('huggingface', 'num_attention_heads', None),
    ('huggingface', 'num_attention_heads', 3),
    ('huggingface', 'hidden_act', ['gelu']),
    ('huggingface', 'layer_norm_eps', '1e-6'),
    ('huggingface', 'ijepa_jax', 'yes'),
    ('timm', 'model_args', [1]),
    ('timm', 'model_args.num_heads', 0),
    ('timm', 'model_args.embed_dim', None),
    ('timm', 'pretrained_cfg', 3),
    ('timm', 'pretrained_cfg.crop_pct', 'all'),
    ('orbax', 'ijepa_jax', [1]),
    ('orbax', 'architecture', [1]),
    ('orbax', 'architecture.heads', ...),
    ('orbax', 'architecture.patch_size', 10**30),
    ('orbax', 'architecture.image_size', -12),
    ('orbax', 'predictor', 'small'),
    ('orbax', 'predictor.depth', []),
    ('orbax', 'predictor.heads', ...),
  ],
)
def test_a_value_that_cannot_be_is_named(format, key, value, tmp_path):
  path, file = described(tmp_path, format)
  change(file, key, value)
  where = str(file).removesuffix('/metadata')
  with pytest.raises(errors.UserError) as caught:
    reading.open_weights(str(path))
  message = str(caught.value)
  assert f'{where}: {key} ' in message
  assert '\n' not in message
  assert len(message) < len(where) + 200


@pytest.mark.parametrize(
  'content', ['{', '[1]', 'null', '3', '', b'\xff{}', '[' * 100_000]
)
@pytest.mark.parametrize('format', ['flax', 'huggingface', 'timm', 'orbax'])
def test_a_description_that_is_no_json_object_is_named(
  format, content, tmp_path
):
  path, file = described(tmp_path, format)
  file.write_bytes(content if isinstance(content, bytes) else content.encode())
  with pytest.raises(errors.UserError) as caught:
    reading.open_weights(str(path))
  message = str(caught.value)
  assert str(file).removesuffix('/metadata') in message
  assert '\n' not in message


@pytest.mark.parametrize('made', ['folder', 'link to nowhere'])
def test_a_config_that_cannot_be_read_is_named(made, tmp_path):
  path, file = described(tmp_path, 'timm')
  file.unlink()
  if made == 'folder':
    file.mkdir()
  else:
    file.symlink_to(tmp_path / 'nothing')
  with pytest.raises(errors.UserError, match=r'config\.json (cannot|is no)'):
    reading.open_weights(str(path))


@pytest.mark.parametrize('format', ['huggingface', 'timm'])
def test_a_square_may_be_described_by_both_sides(format, tmp_path):
  path, file = described(tmp_path, format)
  key = {'huggingface': 'image_size', 'timm': 'model_args.img_size'}[format]
  change(file, key, [12, 12])
  assert_is_the_encoder(reading.open_weights(str(path)))


@pytest.mark.parametrize('made', ['nothing', 'folder'])
@pytest.mark.parametrize('field', ['path', '--checkpoint'])
def test_what_is_wrong_with_a_path_names_what_the_user_typed(
  field, made, tmp_path
):
  if made == 'folder':
    (tmp_path / 'a').mkdir()
  given = {} if field == 'path' else {'field': field}
  with pytest.raises(errors.UserError) as caught:
    encoder.load_encoder(str(tmp_path / 'a'), **given)
  assert str(caught.value).startswith(f'{field}: {tmp_path / "a"} ')


def test_a_missing_predictor_is_named(tmp_path):
  path, _ = described(tmp_path, 'flax')
  (path / 'predictor.safetensors').unlink()
  with pytest.raises(errors.UserError, match=r'predictor\.safetensors cannot'):
    reading.open_weights(str(path))


def test_a_tensor_without_numbers_is_named(tmp_path):
  tensors = small_weights.tensors_of(small_weights.single(), names.ENCODER)
  tensors['pos_embed'] = np.zeros((1, 9, 0), np.float32)
  safetensors.save_file(tensors, tmp_path / 'a')
  with pytest.raises(errors.UserError, match='pos_embed has shape'):
    reading.open_weights(str(tmp_path / 'a'), heads=2)
