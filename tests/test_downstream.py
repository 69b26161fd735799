"""The code blocks of docs/downstream.md run and compute what they say."""

import documents
import numpy as np
import pytest
import small_weights
import test_examples
import tiny

import ijepa_jax

DOCUMENT = tiny.ROOT / 'docs' / 'downstream.md'


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """Where a reader would be: with weights and photos."""
  (tmp_path / 'runs').mkdir()
  held = small_weights.single(depth_four())
  small_weights.write(held, tmp_path / 'runs' / 'vith14', 'flax')
  test_examples.write_images(tmp_path / 'photos')
  for hidden in tmp_path.glob('photos/*/.hidden'):
    hidden.unlink()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.chdir(tmp_path)
  return tmp_path


def depth_four():
  """An architecture with as many blocks as the document asks for."""
  size = small_weights.sizes.Size(64, 4, 4)
  return small_weights.Architecture(size, patch_size=4, image_size=16)


def test_features_for_scikit_learn(folder):
  text = documents.section(
    DOCUMENT, '## Frozen features and scikit-learn', '## Fine-tuning in Flax'
  )
  made = documents.run(text)
  assert made['x'].shape == (20, 64)
  assert made['accuracy'] > 0.9
  with np.load('patches.npz') as table:
    assert table['features'].shape == (20, 2, 16, 64)
    np.testing.assert_allclose(
      table['features'][:, 1].mean(1), made['x'], atol=1e-5
    )


def test_fine_tuning_and_dense_features(folder):
  text = documents.section(DOCUMENT, '## Fine-tuning in Flax', '## PyTorch')
  made = documents.run(text)
  assert np.mean(made['history'][-5:]) < 0.7 * np.mean(made['history'][:5])
  before = ijepa_jax.load_encoder('runs/vith14').params
  after = made['params']['encoder'].params
  np.testing.assert_array_equal(before['pos_embed'], after['pos_embed'])
  qkv = [x['trunk']['blocks']['qkv']['kernel'] for x in (before, after)]
  assert np.abs(qkv[0] - qkv[1]).max() > 1e-6
  assert made['features'].shape == (1, 4, 6, 64)
  np.testing.assert_array_equal(made['deep'][..., -64:], made['features'])
  assert made['mask'].shape == (1, 16, 24)
  shapes = [level.shape[1:] for level in made['levels']]
  assert shapes == [(8, 12, 256), (4, 6, 256), (2, 3, 256), (1, 1, 256)]
