"""A linear classifier on a frozen I-JEPA encoder, in Flax.

Example: python examples/flax_classifier.py runs/vith14 ~/photos
"""

import argparse
import pathlib

import jax
import numpy as np
import optax
from flax import nnx
from PIL import Image

import ijepa_jax

parser = argparse.ArgumentParser(epilog='Every fifth image is held out.')
parser.add_argument('checkpoint', help='whatever ijepa_jax.convert reads')
parser.add_argument('images', type=pathlib.Path, help='a sub-folder per class')
args = parser.parse_args()
paths = sorted(args.images.glob('*/[!.]*')) or parser.error('no images there')
classes, y = np.unique([p.parent.name for p in paths], return_inverse=True)

encoder = ijepa_jax.load_encoder(args.checkpoint)
images = (encoder.preprocess(Image.open(path)) for path in paths)
features = np.concatenate([encoder(x).mean(1) for x in images])  # (n, D)


def loss(classifier: nnx.Linear, x: np.ndarray, y: np.ndarray) -> jax.Array:
  """Mean cross-entropy."""
  losses = optax.softmax_cross_entropy_with_integer_labels(classifier(x), y)
  return losses.mean()


test = np.arange(len(paths)) % 5 == 4
x = (features - features[~test].mean(0)) / (features[~test].std(0) + 1e-6)
classifier = nnx.Linear(x.shape[1], len(classes), rngs=nnx.Rngs(0))
optimizer = nnx.Optimizer(classifier, optax.adamw(1e-2), wrt=nnx.Param)
gradient = nnx.jit(nnx.grad(loss))
for _ in range(200):
  optimizer.update(classifier, gradient(classifier, x[~test], y[~test]))
right = classifier(x[test]).argmax(1) == y[test]
print(f'{len(classes)} classes, accuracy {right.mean():.3f} on {right.size}')
