"""The PyTorch example, and that both examples see the same features."""

import runpy
import sys

import numpy as np
import peers
import pytest
import small_weights
import test_examples
import tiny


@pytest.mark.parametrize('crop', [0.875, 1.0])
def test_both_examples_see_the_same_features(
  crop, tmp_path, monkeypatch, capsys
):
  images = test_examples.write_images(tmp_path / 'images')
  held = small_weights.single(peers.CLASSES['tiny, 16'], crop=crop)
  ours = small_weights.write(held, tmp_path / 'ours', 'flax')
  theirs = small_weights.write(held, tmp_path / 'theirs', 'huggingface')
  files = tmp_path / 'flax.npz', tmp_path / 'pytorch.npz'
  said = test_examples.run(
    'flax_classifier.py', ours, images, '--features', files[0]
  )
  # In this process, where torchvision is mended if it has to be.
  example = str(tiny.ROOT / 'examples' / 'pytorch_classifier.py')
  arguments = [str(theirs), str(images), f'--features={files[1]}']
  monkeypatch.setattr(sys, 'argv', [example, *arguments])
  runpy.run_path(example, run_name='__main__')
  assert capsys.readouterr().out == said == '2 classes, accuracy 1.000 on 4\n'
  flax, pytorch = (dict(np.load(file)) for file in files)
  assert flax['names'].tolist() == pytorch['names'].tolist()
  assert flax['labels'].tolist() == pytorch['labels'].tolist()
  assert flax['features'].std(0).max() > 1e-2
  np.testing.assert_allclose(
    flax['features'], pytorch['features'], rtol=0, atol=2e-5
  )
