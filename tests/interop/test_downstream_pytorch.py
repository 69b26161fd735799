"""The PyTorch blocks of docs/downstream.md."""

import documents
import numpy as np
import peers
import small_weights
import test_downstream
import test_examples

import ijepa_jax


def test_hugging_face_and_timm(tmp_path, monkeypatch):
  (tmp_path / 'runs').mkdir()
  held = small_weights.single(peers.CLASSES['tiny, 16'], ours=True)
  small_weights.write(held, tmp_path / 'runs' / 'vith14', 'flax')
  test_examples.write_images(tmp_path / 'photos')
  for hidden in tmp_path.glob('photos/*/.hidden'):
    hidden.unlink()
  monkeypatch.chdir(tmp_path)
  made = documents.run(
    documents.section(test_downstream.DOCUMENT, '## PyTorch')
  )
  assert len(made['history']) == 5
  assert np.isfinite(made['history']).all()
  assert made['scores'].shape == (8, 2)
  # timm's weights are those before the five steps.
  pixels = made['pixels'].numpy().transpose(0, 2, 3, 1)
  encoder = ijepa_jax.load_encoder('runs/vith14')
  grid = encoder.architecture.grid
  ours = [
    np.asarray(tokens).reshape(8, grid, grid, -1).transpose(0, 3, 1, 2)
    for tokens in encoder.layers(pixels, (-2, -1))
  ]
  for mine, theirs, tuned in zip(
    ours, made['timm_maps'], made['hidden_maps'], strict=True
  ):
    np.testing.assert_allclose(mine, theirs.numpy(), atol=2e-5)
    assert tuned.shape == theirs.shape
    assert np.corrcoef(tuned.numpy().ravel(), mine.ravel())[0, 1] > 0.9
