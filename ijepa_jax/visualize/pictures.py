"""All pictures of a checkpoint by name, each made from the same `Subject`."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from ijepa_jax import errors, train_step
from ijepa_jax.visualize import (
  attention,
  imagination,
  masks,
  pca,
  prediction,
  similarity,
  sketch,
  spectrum,
  tsne,
)
from ijepa_jax.visualize.subject import Subject


@dataclasses.dataclass(frozen=True)
class Picture:
  """One picture.

  Attributes:
    title: what it shows.
    explanation: what it says, in a sentence.
    draw: writes the PNG; returns what was measured for it, by name. A
      UserError says why this checkpoint or these images have no such picture.
  """

  title: str
  explanation: str
  draw: Callable[[Subject, pathlib.Path], Mapping[str, float]]


def _masks(seen: Subject, path: pathlib.Path) -> Mapping[str, float]:
  drawn = dataclasses.asdict(seen.masks)
  masks.draw_masks(path, seen.pixels, drawn, seen.patch_size)
  return {}


def _pca(seen: Subject, path: pathlib.Path) -> Mapping[str, float]:
  drawn = seen.images.drawn
  pca.draw_pca(path, seen.pixels, seen.features[:drawn], seen.features[drawn:])
  return {}


def _similarity(seen: Subject, path: pathlib.Path) -> Mapping[str, float]:
  similarity.draw_similarity(
    path, seen.images.pixels, seen.features, seen.patch, seen.images.drawn
  )
  return {}


def _attention(seen: Subject, path: pathlib.Path) -> Mapping[str, float]:
  depth = seen.encoder.architecture.size.depth
  blocks = attention.blocks_to_draw(depth)
  weights = seen.encoder.attention(
    train_step.normalise(seen.pixels[:1]), blocks
  )
  attention.draw_attention(
    path,
    seen.pixels[0],
    {block: np.asarray(w[0]) for block, w in zip(blocks, weights)},
    seen.patch,
    depth,
  )
  return {}


def _imagination(seen: Subject, path: pathlib.Path) -> Mapping[str, float]:
  predictions = seen.predictions  # first: there may be no predictor
  return imagination.draw_imagination(
    path,
    seen.images.pixels,
    seen.targets,
    seen.images.labels,
    seen.masks,
    predictions,
    seen.images.drawn,
  )


def _spectrum(seen: Subject, path: pathlib.Path) -> Mapping[str, float]:
  pooled, patches = {}, {}
  for step, features in seen.over_training():
    pooled[step] = spectrum.spectrum(features.mean(1))
    patches[step] = spectrum.spectrum(features.reshape(-1, features.shape[-1]))
  spectrum.draw_spectrum(path, pooled, patches)
  return {
    'rankme_pooled': pooled[step].rankme,
    'rankme_patches': patches[step].rankme,
  }


def _tsne(seen: Subject, path: pathlib.Path) -> Mapping[str, float]:
  tsne.library()  # first: features take longer than to see it missing
  places = tsne.layout(seen.features.mean(1))
  tsne.draw_tsne(
    path, seen.images.pixels, places, seen.images.labels, seen.images.classes
  )
  return {}


def _sketch(seen: Subject, path: pathlib.Path) -> Mapping[str, float]:
  drawn = seen.images.drawn
  try:
    predictions = seen.predictions
  except errors.UserError:
    predicted = {}  # the picture of the predictor says why
  else:
    predicted = {
      kind: prediction.holes(predictions[kind][:drawn], seen.masks)
      for kind in ('trained', 'untrained')
    }
  return sketch.draw_sketches(
    path, seen.images.pixels, seen.targets, predicted, drawn
  )


PICTURES = {
  'masks': Picture(
    'Masks: what the encoder sees and what is predicted',
    'The context block that the encoder sees, and the target blocks that are '
    'predicted from it.',
    _masks,
  ),
  'pca': Picture(pca.TITLE, pca.EXPLANATION, _pca),
  'similarity': Picture(similarity.TITLE, similarity.EXPLANATION, _similarity),
  'attention': Picture(attention.TITLE, attention.EXPLANATION, _attention),
  'imagination': Picture(
    imagination.TITLE, imagination.EXPLANATION, _imagination
  ),
  'spectrum': Picture(spectrum.TITLE, spectrum.EXPLANATION, _spectrum),
  'tsne': Picture(tsne.TITLE, tsne.EXPLANATION, _tsne),
  'sketch': Picture(sketch.TITLE, sketch.EXPLANATION, _sketch),
}
