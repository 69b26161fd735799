"""The Flax example runs; the PyTorch one is in interop/."""

import pathlib
import runpy
import sys
from typing import Any

import numpy as np
import pytest
import small_weights
import tiny
from PIL import Image

import ijepa_jax


def write_images(root: pathlib.Path, classes=('blue', 'red'), each=10):
  """Plain colours with noise, JPEG and PNG, every one of another size."""
  rng = np.random.default_rng(0)
  for position, name in enumerate(classes):
    (root / name).mkdir(parents=True)
    for number in range(each):
      size = (*rng.integers(14, 50, 2), 3)
      pixels = rng.integers(0, 120, size, dtype=np.uint8)
      pixels[..., 2 - 2 * position] += 120
      suffix = 'jpg' if number % 2 else 'png'
      Image.fromarray(pixels).save(root / name / f'{number}.{suffix}')
    (root / name / '.hidden').touch()
  return root


def run(monkeypatch, name: str, *arguments) -> dict[str, Any]:
  """Runs an example in this process; returns its variables."""
  example = str(tiny.ROOT / 'examples' / name)
  monkeypatch.setattr(sys, 'argv', [example, *map(str, arguments)])
  return runpy.run_path(example, run_name='__main__')


def test_flax_classifier(tmp_path, monkeypatch, capsys):
  images = write_images(tmp_path / 'images')
  held = small_weights.write(small_weights.single(), tmp_path / 'a', 'flax')
  made = run(monkeypatch, 'flax_classifier.py', held, images)
  assert capsys.readouterr().out == '2 classes, accuracy 1.000 on 4\n'
  assert made['features'].shape == (20, 44)
  assert made['y'].tolist() == [0] * 10 + [1] * 10
  encoder = ijepa_jax.load_encoder(str(held))
  first = encoder.preprocess(Image.open(made['paths'][0]))
  alone = encoder(first).mean(1)[0]
  np.testing.assert_allclose(made['features'][0], alone, atol=1e-5)


def test_a_folder_without_images_is_one_line(tmp_path, monkeypatch, capsys):
  with pytest.raises(SystemExit, match='2'):
    run(monkeypatch, 'flax_classifier.py', 'weights', tmp_path)
  assert 'no images' in capsys.readouterr().err.splitlines()[-1]
