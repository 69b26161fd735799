"""A linear classifier on a frozen I-JEPA encoder, in PyTorch.

  python -m ijepa_jax.convert runs/vith14 exported --to=huggingface
  python examples/pytorch_classifier.py exported ~/photos

Needs torch and transformers, not ijepa_jax. IMAGES has one sub-folder per
class. Every fifth image is held out.
"""

import argparse
import pathlib

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import AutoModel

parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
parser.add_argument('checkpoint', help='what convert --to=huggingface wrote')
parser.add_argument('images', type=pathlib.Path)
parser.add_argument('--features', help='.npz for the features')
args = parser.parse_args()

suffixes = {'.jpg', '.jpeg', '.png', '.webp'}
paths = [p for p in args.images.glob('*/*') if p.suffix.lower() in suffixes]
paths.sort()
if not paths:
  parser.error(f'no images in {args.images}/CLASS/')
classes = sorted({path.parent.name for path in paths})
labels = torch.tensor([classes.index(path.parent.name) for path in paths])

encoder = AutoModel.from_pretrained(args.checkpoint).eval()
share = getattr(encoder.config, 'ijepa_jax', {}).get('crop', 0.875)


def preprocess(path: pathlib.Path) -> torch.Tensor:
  """The central square, resized and normalised, (3, S, S).

  AutoImageProcessor resizes first and crops then: the same but for rounding.
  """
  image = ImageOps.exif_transpose(Image.open(path)).convert('RGB')
  side = max(1, round(share * min(image.size)))
  left, top = (image.width - side) // 2, (image.height - side) // 2
  square = image.crop((left, top, left + side, top + side))
  size = encoder.config.image_size
  pixels = np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))
  x = torch.from_numpy(pixels / np.float32(255)).permute(2, 0, 1)
  mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
  return (x - mean) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


with torch.inference_mode():
  batches = torch.utils.data.DataLoader(paths, 32, collate_fn=list)
  features = torch.cat(
    [
      encoder(torch.stack([*map(preprocess, batch)])).last_hidden_state.mean(1)
      for batch in batches
    ]
  ).clone()  # (n, D)
if args.features:
  names = [path.relative_to(args.images).as_posix() for path in paths]
  np.savez(args.features, names=names, features=features, labels=labels)

held_out = torch.arange(len(paths)) % 5 == 4
train = features[~held_out]
scaled = (features - train.mean(0)) / (train.std(0) + 1e-6)
classifier = torch.nn.Linear(features.shape[1], len(classes))
optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-2)
for _ in range(200):
  logits = classifier(scaled[~held_out])
  loss = torch.nn.functional.cross_entropy(logits, labels[~held_out])
  optimizer.zero_grad()
  loss.backward()
  optimizer.step()
right = classifier(scaled[held_out]).argmax(1) == labels[held_out]
accuracy = right.float().mean()
print(f'{len(classes)} classes, accuracy {accuracy:.3f} on {len(right)}')
