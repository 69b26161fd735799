"""Wrong input to convert: one line, exit code 2, nothing left behind."""

import json
import math
import shutil
import sys

import ml_dtypes
import numpy as np
import pytest
import small_weights
from safetensors import numpy as safetensors

from ijepa_jax import checkpoint_files, convert, errors
from ijepa_jax.interop import names


@pytest.fixture
def refusal(tmp_path, capsys):
  """Runs the command and returns its error line without the `error: `."""

  def run(src, *arguments):
    before = small_weights.listing(tmp_path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught, errors.exit_cleanly():
      convert.main([str(src), str(tmp_path / 'dst'), '--to=flax', *arguments])
    assert caught.value.code == 2
    assert small_weights.listing(tmp_path) == before
    lines = capsys.readouterr().err.splitlines()
    # Before it: what was recognised, and the licence.
    assert [line.startswith('error: ') for line in lines[:-1]].count(True) == 0
    assert lines[-1].startswith('error: ')
    return lines[-1].removeprefix('error: ')

  return run


@pytest.fixture
def tensors():
  """The reference's names, for a file without config.json."""
  return small_weights.tensors_of(small_weights.single(), names.ENCODER)


@pytest.fixture
def save(tmp_path):
  def to_file(tensors):
    safetensors.save_file(tensors, tmp_path / 'src.safetensors')
    return tmp_path / 'src.safetensors'

  return to_file


@pytest.mark.parametrize('share', [0, 0.001, 0.02, 0.5, 0.999])
def test_truncated_safetensors(share, tensors, save, refusal):
  file = save(tensors)
  whole = file.read_bytes()
  file.write_bytes(whole[: int(share * len(whole))])
  message = refusal(file, '--heads=2')
  assert 'src.safetensors' in message
  assert 'truncated' in message or 'no file of weights' in message


def test_missing_tensor_is_named(tensors, save, refusal):
  del tensors['blocks.1.mlp.fc2.bias']
  message = refusal(save(tensors), '--heads=2')
  assert 'blocks.1.mlp.fc2.bias is missing' in message


@pytest.mark.parametrize(
  'name',
  [
    'pos_embed',
    'patch_embed.proj.weight',
    'blocks.0.norm1.weight',
    'blocks.0.mlp.fc1.weight',
  ],
)
def test_missing_tensor_that_tells_the_size_is_named(
  name, tensors, save, refusal
):
  del tensors[name]
  message = refusal(save(tensors), '--heads=2')
  assert f'{name} is missing' in message or 'no I-JEPA encoder' in message


def test_tensor_under_another_name_is_suggested(tensors, save, refusal):
  tensors['norm.weigth'] = tensors.pop('norm.weight')
  message = refusal(save(tensors), '--heads=2')
  assert 'norm.weight is missing; norm.weigth is there instead' in message


def test_a_name_of_two_lines_is_one_line(tensors, save, refusal):
  tensors['norm\n.weight'] = tensors.pop('norm.weight')
  message = refusal(save(tensors), '--heads=2')
  assert r"src.safetensors: 'norm\n.weight' is no name of a tensor" in message


def test_unknown_tensors_are_named_and_counted(tensors, save, refusal):
  tensors['cls_token'] = np.zeros((1, 1, 44), np.float32)
  tensors['blocks.0.ls1.gamma'] = np.zeros(44, np.float32)
  message = refusal(save(tensors), '--heads=2')
  assert 'is not part of an I-JEPA model, and 1 more' in message
  assert 'cls_token' in message or 'blocks.0.ls1.gamma' in message


@pytest.mark.parametrize(
  ('name', 'shape'),
  [
    ('norm.bias', (43,)),
    ('norm.bias', ()),
    ('blocks.2.attn.qkv.weight', (44, 132)),
    ('blocks.0.mlp.fc1.weight', (192,)),
    ('blocks.0.mlp.fc1.weight', (3, 192, 44)),
    ('pos_embed', (9, 44)),
    ('pos_embed', (1, 10, 44)),
    ('patch_embed.proj.weight', (44, 1, 4, 4)),
    ('patch_embed.proj.weight', (44, 3, 4, 2)),
    ('patch_embed.proj.weight', (44, 48)),
  ],
)
def test_wrong_shape_is_named(name, shape, tensors, save, refusal):
  tensors[name] = np.zeros(shape, np.float32)
  message = refusal(save(tensors), '--heads=2')
  assert name in message or 'square' in message
  assert 'shape' in message or 'square' in message


@pytest.mark.parametrize('value', [math.nan, math.inf])
@pytest.mark.parametrize('dtype', [np.float32, np.float16, ml_dtypes.bfloat16])
def test_nan_is_named(value, dtype, tensors, save, refusal):
  tensors = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
  tensors['blocks.2.attn.proj.weight'][3, 4] = value
  message = refusal(save(tensors), '--heads=2')
  assert 'blocks.2.attn.proj.weight holds NaN or infinite' in message


def test_unknown_width_asks_for_the_heads(tensors, save, refusal):
  message = refusal(save(tensors))
  assert 'a width of 44' in message
  assert '--heads=N' in message


@pytest.mark.parametrize('heads', [3, -2, 0])
def test_heads_that_cannot_be(heads, tensors, save, refusal):
  assert 'heads' in refusal(save(tensors), f'--heads={heads}')


def test_heads_other_than_the_config_says(tmp_path, refusal):
  a = small_weights.write(small_weights.single(), tmp_path / 'a', 'timm')
  message = refusal(a, '--heads=4')
  assert 'config.json: model_args.num_heads is 2, heads=4 was' in message


@pytest.mark.parametrize('made', ['file', 'folder', 'link'])
def test_existing_dst_is_kept(made, tmp_path, refusal):
  a = small_weights.write(small_weights.single(), tmp_path / 'a', 'flax')
  dst = tmp_path / 'dst'
  if made == 'file':
    dst.write_text('mine')
  elif made == 'folder':
    dst.mkdir()
  else:
    dst.symlink_to(tmp_path / 'nowhere')
  assert 'dst exists; choose another name' in refusal(a)


def test_dst_below_a_file(tmp_path, capsys):
  a = small_weights.write(small_weights.single(), tmp_path / 'a', 'flax')
  (tmp_path / 'file').write_text('mine')
  before = small_weights.listing(tmp_path)
  with pytest.raises(errors.StorageError, match='cannot be written'):
    convert.main([str(a), str(tmp_path / 'file' / 'dst'), '--to=flax'])
  assert small_weights.listing(tmp_path) == before


@pytest.mark.parametrize(
  'content', [b'', b'hello', b'\x89PNG\r\n', b'{', b'[1]', bytes(64)]
)
def test_a_file_of_something_else(content, tmp_path, refusal):
  (tmp_path / 'src').write_bytes(content)
  message = refusal(tmp_path / 'src')
  assert str(tmp_path / 'src') in message


def test_safetensors_of_another_model(save, refusal):
  message = refusal(save({'conv1.weight': np.zeros((2, 2), np.float32)}))
  assert 'holds no I-JEPA encoder' in message
  assert 'conv1.weight' in message


def test_an_empty_directory(tmp_path, refusal):
  (tmp_path / 'src').mkdir()
  assert 'holds no weights' in refusal(tmp_path / 'src')


def test_nothing_there_suggests_a_name(tmp_path, refusal):
  (tmp_path / 'exported').mkdir()
  message = refusal(tmp_path / 'exportet')
  assert 'SRC' in message
  assert 'exported' in message


@pytest.mark.parametrize('size', [13, 2, 0, -12])
def test_image_size_that_patches_do_not_fill(size, tmp_path, refusal):
  a = small_weights.write(small_weights.single(), tmp_path / 'a', 'flax')
  message = refusal(a, f'--image-size={size}')
  assert f'image_size={size}' in message
  assert 'patch size 4' in message


def shards(tensors, folder):
  """Two shards with an index."""
  folder.mkdir()
  parts = list(tensors)[::2], list(tensors)[1::2]
  where = {}
  for number, part in enumerate(parts, 1):
    name = f'model-0000{number}-of-00002.safetensors'
    safetensors.save_file({n: tensors[n] for n in part}, folder / name)
    where |= dict.fromkeys(part, name)
  index = {'metadata': {}, 'weight_map': where}
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
  return folder


def test_missing_shard_is_named(tensors, tmp_path, refusal):
  src = shards(tensors, tmp_path / 'src')
  (src / 'model-00002-of-00002.safetensors').unlink()
  message = refusal(src, '--heads=2')
  assert 'model-00002-of-00002.safetensors is missing' in message


def test_tensor_missing_from_its_shard_is_named(tensors, tmp_path, refusal):
  src = shards(tensors, tmp_path / 'src')
  one, two = sorted(src.glob('*.safetensors'))
  shutil.copy(one, two)
  message = refusal(src, '--heads=2')
  assert 'model-00002-of-00002.safetensors: ' in message
  assert 'is missing' in message


@pytest.mark.parametrize(
  'index',
  [
    '{',
    '{}',
    '{"weight_map": 3}',
    '{"weight_map": {}}',
    '{"weight_map": null}',
    '{"weight_map": ["a"]}',
    '{"a":' * 100_000,
  ],
)
def test_index_without_shards(index, tmp_path, refusal):
  (tmp_path / 'src').mkdir()
  (tmp_path / 'src' / 'model.safetensors.index.json').write_text(index)
  message = refusal(tmp_path / 'src')
  assert 'model.safetensors.index.json' in message
  assert 'JSON' in message or 'weight_map' in message


@pytest.mark.parametrize(
  'shard',
  [
    '../secret.safetensors',
    '/secret.safetensors',
    'a/b',
    '..',
    '.',
    '',
    'a\nb',
  ],
)
def test_an_index_does_not_lead_out_of_its_directory(
  shard, tensors, tmp_path, refusal
):
  src = shards(tensors, tmp_path / 'src')
  shutil.copy(
    src / 'model-00001-of-00002.safetensors', tmp_path / 'secret.safetensors'
  )
  index = {'weight_map': {'norm.bias': shard}}
  (src / 'model.safetensors.index.json').write_text(json.dumps(index))
  message = refusal(src, '--heads=2')
  assert f'weight_map.norm.bias is {json.dumps(shard)}, expected' in message
  assert 'model.safetensors.index.json' in message


@pytest.mark.parametrize('value', [None, 3, [], {'a': 'b'}])
def test_a_shard_that_is_no_name(value, tmp_path, refusal):
  (tmp_path / 'src').mkdir()
  index = json.dumps({'weight_map': {'norm.bias': value}})
  (tmp_path / 'src' / 'model.safetensors.index.json').write_text(index)
  message = refusal(tmp_path / 'src')
  assert 'weight_map.norm.bias is ' in message
  assert 'expected the name of a file' in message


@pytest.mark.parametrize('made', ['folder', 'loop', 'link to nowhere'])
def test_a_shard_that_cannot_be_read(made, tensors, tmp_path, refusal):
  src = shards(tensors, tmp_path / 'src')
  shard = src / 'model-00002-of-00002.safetensors'
  shard.unlink()
  if made == 'folder':
    shard.mkdir()
  else:
    shard.symlink_to(shard if made == 'loop' else src / 'nothing')
  message = refusal(src, '--heads=2')
  assert f'{shard} cannot be read: ' in message


def test_an_index_that_names_itself(tmp_path, refusal):
  (tmp_path / 'src').mkdir()
  index = tmp_path / 'src' / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': {'norm.bias': index.name}}))
  assert f'{index} is no shard; {index} names it' in refusal(index)


def test_weights_that_are_a_link_to_nowhere(tmp_path, refusal):
  (tmp_path / 'src').mkdir()
  file = tmp_path / 'src' / 'model.safetensors'
  file.symlink_to(tmp_path / 'nothing')
  assert f'{file} cannot be read' in refusal(tmp_path / 'src')


def test_broken_config_json(tmp_path, refusal):
  a = small_weights.write(small_weights.single(), tmp_path / 'a', 'timm')
  (a / 'config.json').write_text('{"architecture":')
  assert 'config.json is no JSON' in refusal(a)


def test_hugging_face_model_that_computes_something_else(tmp_path, refusal):
  a = small_weights.write(small_weights.single(), tmp_path / 'a', 'huggingface')
  config = json.loads((a / 'config.json').read_text())
  for change in ({'hidden_act': 'gelu_new'}, {'qkv_bias': False}):
    (a / 'config.json').write_text(json.dumps(config | change))
    (name,) = change
    assert name in refusal(a)


def test_a_pytorch_file_without_pytorch(tmp_path, monkeypatch, refusal):
  monkeypatch.setitem(sys.modules, 'torch', None)
  (tmp_path / 'jepa.pth.tar').write_bytes(b'PK\x03\x04' + bytes(60))
  message = refusal(tmp_path / 'jepa.pth.tar')
  assert "pip install -e '.[torch]'" in message


def test_to_reference_without_pytorch(tmp_path, monkeypatch, refusal):
  monkeypatch.setitem(sys.modules, 'torch', None)
  a = small_weights.write(small_weights.single(), tmp_path / 'a', 'flax')
  message = refusal(a, '--to=reference')
  assert "pip install -e '.[torch]'" in message


# Orbax's own threads complain too.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_damaged_checkpoint(tmp_path, refusal):
  a = small_weights.write(small_weights.single(), tmp_path / 'a', 'orbax')
  for file in (a / 'state').rglob('*'):
    if file.is_file() and file.name != '_METADATA':
      file.write_bytes(file.read_bytes()[:10])
  assert 'cannot read checkpoint' in refusal(a)


def test_a_checkpoint_without_description(tmp_path, refusal):
  a = small_weights.write(small_weights.single(), tmp_path / 'a', 'orbax')
  shutil.rmtree(a / 'meta')
  assert 'holds no weights' in refusal(a)


@pytest.mark.parametrize('meta', [{}, {'architecture': {'width': 3}}])
def test_a_checkpoint_that_says_nothing_of_its_size(meta, tmp_path, refusal):
  state = {'target': small_weights.single().target.tree()}
  checkpoint_files.write(tmp_path / 'src', state, meta)
  assert str(tmp_path / 'src') in refusal(tmp_path / 'src')


def test_sincos_needs_a_size(tmp_path, refusal):
  a = small_weights.write(small_weights.single(), tmp_path / 'a', 'flax')
  assert '--image-size' in refusal(a, '--positions=sincos')


def test_other_heads_than_a_checkpoint_says(tmp_path, refusal):
  a = small_weights.write(small_weights.single(), tmp_path / 'a', 'orbax')
  assert 'heads=4 was given' in refusal(a, '--heads=4')
