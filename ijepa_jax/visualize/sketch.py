"""What features look like when a small decoder draws them."""

import os
from collections.abc import Sequence

import numpy as np

from ijepa_jax.visualize import decoder, patches
from ijepa_jax.visualize import figure as fig
from ijepa_jax.visualize.prediction import Hole
from ijepa_jax.visualize.sheet import Sheet

TITLE = 'What features hold of the pixels: sketches by a small decoder'
EXPLANATION = (
  'A small decoder, trained on frozen features of other images, draws each '
  'patch from its features alone: of the whole image, and of predictions.'
)

_STEPS = 1000  # of the decoder's training


def draw_sketches(
  path: str | os.PathLike,
  images: np.ndarray,
  targets: np.ndarray,
  predicted: dict[str, list[Hole]],
  drawn: int,
) -> dict[str, float]:
  """Trains a decoder and draws with it.

  Args:
    path: of the PNG, written atomically.
    images: `(n, S, S, 3)` uint8; the decoder is trained on those not drawn.
    targets: `(n, N, D)` as the loss sees them.
    predicted: what was predicted of the images to be drawn: `trained` and
      `untrained`, or nothing.
    drawn: images to be drawn.

  Returns:
    `explained`: share of the variance of the drawn images' pixels.
  """
  n, length, width = targets.shape
  grid = round(length**0.5)
  side = images.shape[1] // grid
  pixels = decoder.to_pixels(patches.cut(images, side))
  params = decoder.train(
    targets[drawn:].reshape(-1, width),
    pixels[drawn:].reshape((n - drawn) * length, -1),
    _STEPS,
  )
  of_truth = np.asarray(decoder.decode(params, targets[:drawn]))
  explained = decoder.explained(
    of_truth.reshape(drawn * length, -1),
    pixels[:drawn].reshape(drawn * length, -1),
  )
  rows = [('image', 'the truth'), ('features', 'sketch of the true\nfeatures')]
  if predicted:
    rows += [
      ('predicted', 'sketch of the\npredictions'),
      ('control', 'a predictor with\nrandom weights'),
    ]
  sheet = Sheet(
    len(rows),
    drawn,
    title=TITLE,
    text='Each patch is drawn from its own features alone by a decoder with '
    f'two hidden layers, trained on {n - drawn:,} other images. What features '
    'do not tell comes out as a mean: blur and grey are what the encoder does '
    f'not keep. Of the variance of these pixels the sketches explain '
    f'{explained:.0%}.'
    + (
      ' In the outlined holes, the same decoder draws what the predictor says.'
      if predicted
      else ''
    ),
  )
  drawings = {
    kind: _draw_holes(params, found, side) for kind, found in predicted.items()
  }
  every = np.arange(length)
  for i, image in enumerate(images[:drawn]):
    whole = patches.paste(image, decoder.to_patches(of_truth[i], side), every)
    patches.show(sheet.tile(0, i), image)
    patches.show(sheet.tile(1, i), whole)
    for row, kind in enumerate(predicted, 2):
      hole = predicted[kind][i]
      axis = sheet.tile(row, i)
      patches.show(axis, patches.paste(whole, drawings[kind][i], hole.patches))
      inside = patches.as_grid(hole.patches, grid)
      patches.outline(axis, [(fig.INK, inside)], side, 1.2)
  for row, (name, meaning) in enumerate(rows):
    sheet.label(row, name, meaning)
  sheet.save(path)
  return {'explained': explained}


def _draw_holes(
  params: decoder.Params, found: Sequence[Hole], side: int
) -> list[np.ndarray]:
  """Patches `(k, P, P, 3)` of each hole, decoded at once: one compilation."""
  together = decoder.decode(params, np.concatenate([h.features for h in found]))
  ends = np.cumsum([len(hole.patches) for hole in found])
  return np.split(decoder.to_patches(np.asarray(together), side), ends[:-1])
