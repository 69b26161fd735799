"""The Flax example runs; the PyTorch one is in interop/."""

import pathlib
import subprocess
import sys

import numpy as np
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
  return root


def run(name: str, *arguments) -> str:
  """Runs an example; returns what it printed."""
  done = subprocess.run(
    [sys.executable, tiny.ROOT / 'examples' / name, *map(str, arguments)],
    env=tiny.environment(),
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_flax_classifier(tmp_path):
  images = write_images(tmp_path / 'images')
  held = small_weights.write(small_weights.single(), tmp_path / 'a', 'flax')
  file = tmp_path / 'features.npz'
  said = run('flax_classifier.py', held, images, f'--features={file}')
  assert said == '2 classes, accuracy 1.000 on 4\n'
  with np.load(file) as saved:
    saved = dict(saved)
  assert saved['features'].shape == (20, 44)
  assert saved['labels'].tolist() == [0] * 10 + [1] * 10
  encoder = ijepa_jax.load_encoder(str(held))
  first = encoder.preprocess(Image.open(images / saved['names'][0]))
  alone = encoder(first).mean(1)[0]
  np.testing.assert_allclose(saved['features'][0], alone, atol=1e-5)
