"""The PyTorch example, and that both examples see the same features."""

import numpy as np
import peers
import pytest
import small_weights
import test_examples


@pytest.mark.parametrize('crop', [0.875, 1.0])
def test_both_examples_see_the_same_features(
  crop, tmp_path, monkeypatch, capsys
):
  images = test_examples.write_images(tmp_path / 'images')
  held = small_weights.single(peers.CLASSES['tiny, 16'], crop=crop)
  made = []
  for example, format in (
    ('flax_classifier.py', 'flax'),
    ('pytorch_classifier.py', 'huggingface'),
  ):
    weights = small_weights.write(held, tmp_path / format, format)
    made.append(test_examples.run(monkeypatch, example, weights, images))
    assert capsys.readouterr().out == '2 classes, accuracy 1.000 on 4\n'
  flax, pytorch = made
  assert flax['paths'] == pytorch['paths']
  assert flax['y'].tolist() == pytorch['y'].tolist()
  assert flax['features'].std(0).max() > 1e-2
  np.testing.assert_allclose(
    flax['features'], pytorch['features'], rtol=0, atol=2e-5
  )
