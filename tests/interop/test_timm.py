"""Against timm's VisionTransformer."""

import numpy as np
import peers
import pytest
import small_weights
from peers import published, timm, torch
from safetensors.torch import save_file

from ijepa_jax.interop import names, writing
from ijepa_jax.interop.weights import Architecture, shapes
from ijepa_jax.models import sizes

__all__ = ['published']  # a fixture


def load(folder):
  """As timm's users do; it is strict."""
  return timm.create_model(f'local-dir:{folder}', pretrained=True).eval()


def test_create_model_computes_what_we_compute(published, tmp_path):
  folder = small_weights.write(published, tmp_path / 'a', 'timm')
  model = load(folder)
  assert model.norm.eps == 1e-6
  x = peers.images(published.architecture.image_size)
  with torch.no_grad():
    theirs = model.forward_features(peers.nchw(x))
    pooled = model(peers.nchw(x))
  mine = peers.ours(folder, x)
  np.testing.assert_allclose(mine, theirs, atol=2e-5)
  np.testing.assert_allclose(mine.mean(1), pooled, atol=2e-5)


def test_the_configuration_of_the_data_is_ours(tmp_path):
  held = small_weights.single(peers.CLASSES['tiny, 16'], ours=True, crop=0.75)
  folder = small_weights.write(held, tmp_path / 'a', 'timm')
  data = timm.data.resolve_model_data_config(load(folder))
  assert data['input_size'] == (3, 48, 48)
  assert data['interpolation'] == 'bilinear'
  assert data['crop_pct'] == 0.75
  assert data['mean'] == pytest.approx((0.485, 0.456, 0.406))
  assert data['std'] == pytest.approx((0.229, 0.224, 0.225))


@pytest.mark.parametrize('file', ['torch', 'safetensors'])
def test_a_state_dict_comes_back_bitwise(file, tmp_path):
  model = timm.create_model(
    'vit_tiny_patch16_224',
    img_size=48,
    depth=2,
    class_token=False,
    global_pool='avg',
    fc_norm=False,
    num_classes=7,
  )
  state = peers.randomise(model).state_dict()
  src = tmp_path / 'model.any'
  save = {'torch': torch.save, 'safetensors': save_file}[file]
  save(state, src)
  middle, said = small_weights.run(src, tmp_path / 'm', '--to=flax')
  assert 'left out: head' in said
  back, _ = small_weights.run(middle, tmp_path / 'b', '--to=timm')
  again = load(back).state_dict()
  expected = {k: v for k, v in state.items() if not k.startswith('head.')}
  peers.assert_same_state(again, expected)


@pytest.mark.parametrize(
  ('variant', 'patch', 'image', 'name'),
  [
    ('vit_huge', 14, 224, 'vit_huge_patch14_gap_224'),
    ('vit_huge', 16, 448, 'vit_huge_patch16_gap_448'),
    ('vit_giant', 16, 224, 'vit_giant_patch16_gap_224'),
    ('vit_large', 16, 224, 'vit_base_patch16_224'),
  ],
)
def test_published_architectures_have_the_tensors_of_timm(
  variant, patch, image, name
):
  architecture = Architecture(sizes.SIZES[variant], patch, image)
  called, arguments = writing.timm_model(architecture)
  assert called == name
  with torch.device('meta'):
    model = timm.create_model(name, **{'num_classes': 0} | arguments)
  theirs = {k: tuple(v.shape) for k, v in model.state_dict().items()}
  ours = {}
  for path, shape in shapes(architecture.encoder()).items():
    (entry,) = (e for e in names.ENCODER if e.ours == path)
    zeros = np.broadcast_to(
      np.float32(0), shape[1:] if entry.stacked else shape
    )
    theirs_shape = entry.layout.to_theirs(zeros).shape
    for block in range(shape[0] if entry.stacked else 1):
      ours[entry.names(block)[0]] = theirs_shape
  assert ours == theirs
  assert len(model.blocks) == architecture.size.depth
  assert model.blocks[0].attn.num_heads == architecture.size.heads
