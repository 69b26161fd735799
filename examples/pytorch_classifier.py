"""A linear classifier on a frozen I-JEPA encoder, in PyTorch.

Example: python -m ijepa_jax.convert runs/vith14 exported --to=huggingface
         python examples/pytorch_classifier.py exported ~/photos
"""

import argparse
import pathlib

import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModel

parser = argparse.ArgumentParser(epilog='Every fifth image is held out.')
parser.add_argument('checkpoint', help='what convert --to=huggingface wrote')
parser.add_argument('images', type=pathlib.Path, help='a sub-folder per class')
args = parser.parse_args()
paths = sorted(args.images.glob('*/[!.]*')) or parser.error('no images there')
classes = sorted({path.parent.name for path in paths})
y = torch.tensor([classes.index(path.parent.name) for path in paths])

encoder = AutoModel.from_pretrained(args.checkpoint).requires_grad_(False)
processor = AutoImageProcessor.from_pretrained(args.checkpoint, backend='pil')
rows = []
for path in paths:
  image = ImageOps.exif_transpose(Image.open(path)).convert('RGB')
  side = round(encoder.config.ijepa_jax['crop'] * min(image.size))
  # Cut out first, as Encoder.preprocess does: a processor crops last.
  left, top = (image.width - side) // 2, (image.height - side) // 2
  square = image.crop((left, top, left + side, top + side))
  batch = processor(square, size=encoder.config.image_size, return_tensors='pt')
  rows.append(encoder(**batch).last_hidden_state.mean(1))
features = torch.cat(rows)  # (n, D)

test = torch.arange(len(paths)) % 5 == 4
x = (features - features[~test].mean(0)) / (features[~test].std(0) + 1e-6)
classifier = torch.nn.Linear(x.shape[1], len(classes))
optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-2)
for _ in range(200):
  loss = torch.nn.functional.cross_entropy(classifier(x[~test]), y[~test])
  optimizer.zero_grad()
  loss.backward()
  optimizer.step()
right = (classifier(x[test]).argmax(1) == y[test]).float()
print(f'{len(classes)} classes, accuracy {right.mean():.3f} on {len(right)}')
