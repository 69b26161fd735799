"""A linear classifier on a frozen I-JEPA encoder, in Flax.

  python examples/flax_classifier.py runs/vith14 ~/photos

IMAGES has one sub-folder per class. Every fifth image is held out.
"""

import argparse
import pathlib

import jax
import numpy as np
import optax
from flax import nnx
from PIL import Image

import ijepa_jax

parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
parser.add_argument('checkpoint', help='whatever ijepa_jax.convert reads')
parser.add_argument('images', type=pathlib.Path)
parser.add_argument('--features', help='.npz for the features')
args = parser.parse_args()

suffixes = {'.jpg', '.jpeg', '.png', '.webp'}
paths = [p for p in args.images.glob('*/*') if p.suffix.lower() in suffixes]
paths.sort()
if not paths:
  parser.error(f'no images in {args.images}/CLASS/')
classes = sorted({path.parent.name for path in paths})
labels = np.array([classes.index(path.parent.name) for path in paths])

encoder = ijepa_jax.load_encoder(args.checkpoint)
pool = jax.jit(lambda encoder, images: encoder(images).mean(1))
features = np.concatenate(
  [
    pool(
      encoder, encoder.preprocess([Image.open(p) for p in paths[i : i + 32]])
    )
    for i in range(0, len(paths), 32)
  ]
)  # (n, D)
if args.features:
  names = [path.relative_to(args.images).as_posix() for path in paths]
  np.savez(args.features, names=names, features=features, labels=labels)

held_out = np.arange(len(paths)) % 5 == 4
train = features[~held_out]
scaled = (features - train.mean(0)) / (train.std(0) + 1e-6)
classifier = nnx.Linear(features.shape[1], len(classes), rngs=nnx.Rngs(0))
optimizer = nnx.Optimizer(classifier, optax.adamw(1e-2), wrt=nnx.Param)


@nnx.jit
def step(classifier, optimizer, x, y) -> None:
  """One update on all training images."""

  def loss(classifier):
    logits = classifier(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

  optimizer.update(classifier, nnx.grad(loss)(classifier))


for _ in range(200):
  step(classifier, optimizer, scaled[~held_out], labels[~held_out])
right = classifier(scaled[held_out]).argmax(1) == labels[held_out]
print(f'{len(classes)} classes, accuracy {right.mean():.3f} on {right.size}')
