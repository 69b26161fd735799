"""The probes and health figures that a training run takes as it goes."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image

from ijepa_jax.evaluation import health, probes

# Raw pixels are probed at no more than this side: 768 numbers per image. On
# CIFAR-10 (5,000 / 2,000 images) that is no weaker a baseline than full size:
# k-NN 32 % and linear 38 % at 16, 30 % and 37 % at 32, ten times as slow.
PIXEL_SIDE = 16


class LabelledImages(NamedTuple):
  """Images of one size with any number of labels, none included."""

  images: np.ndarray  # (n, S, S, 3) uint8
  labels: Mapping[str, np.ndarray]  # label name -> (n,) integers


class OnlineEvaluation:
  """Measures an encoder on a fixed set of held-out images.

  All accuracies are shares, 0..1, on `test` by probes fitted on `train`.
  """

  def __init__(self, train: LabelledImages, test: LabelledImages):
    """Both need the same label names; without labels only health is measured.

    Args:
      train: images that the probes are fitted on, at least 2.
      test: images that figures are measured on, at least 2.
    """
    if train.labels.keys() != test.labels.keys():
      raise ValueError(
        f'train has labels {sorted(train.labels)}, test {sorted(test.labels)}'
      )
    self._train, self._test = train, test

  def evaluate(
    self, encode: Callable[[np.ndarray], np.ndarray]
  ) -> dict[str, float]:
    """Health and probes of an encoder.

    Args:
      encode: images (n, S, S, 3) uint8 -> features (n, D) float32; it is given
        a whole set at once and cuts it into batches itself.

    Returns:
      health/{rankme,feature_std,image_cosine} of the test images and
      probe/LABEL/{knn,linear}. All NaN where a feature is not finite.
    """
    test = encode(self._test.images)
    figures = {
      'health/rankme': health.rankme,
      'health/feature_std': health.feature_std,
      'health/image_cosine': health.mean_cosine,
    }
    if not np.isfinite(test).all():
      return dict.fromkeys([*figures, *self._probe_names()], float('nan'))
    results = {name: figure(test) for name, figure in figures.items()}
    if self._train.labels:
      results |= self._probe(encode(self._train.images), test)
    return results

  def pixels(self) -> dict[str, float]:
    """The same probes on raw pixels: what an encoder has to beat.

    Images are averaged down to at most 16 x 16 pixels first.
    """
    if not self._train.labels:
      return {}
    return self._probe(
      _as_vectors(self._train.images), _as_vectors(self._test.images)
    )

  @property
  def chance(self) -> dict[str, float]:
    """Label name -> accuracy of always guessing train's commonest class."""
    result = {}
    for name, y in self._train.labels.items():
      classes, counts = np.unique(y, return_counts=True)
      guess = classes[counts.argmax()]
      result[name] = float(np.mean(self._test.labels[name] == guess))
    return result

  def _probe_names(self) -> list[str]:
    return [
      f'probe/{name}/{probe}'
      for name in self._train.labels
      for probe in ('knn', 'linear')
    ]

  def _probe(self, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """probe/LABEL/{knn,linear} of features (n, D) and (m, D)."""
    if not (np.isfinite(train).all() and np.isfinite(test).all()):
      return dict.fromkeys(self._probe_names(), float('nan'))
    knn = probes.knn_predict(train, self._train.labels, test)
    linear = probes.ridge_predict(train, self._train.labels, test)
    results = {}
    for name, y in self._test.labels.items():
      results[f'probe/{name}/knn'] = probes.accuracy(knn[name], y)
      results[f'probe/{name}/linear'] = probes.accuracy(linear[name], y)
    return results


def _as_vectors(images: np.ndarray) -> np.ndarray:
  """(n, S, S, 3) uint8 -> (n, P * P * 3) float32 in 0..1, P at most 16."""
  if images.shape[1] > PIXEL_SIDE:
    size = (PIXEL_SIDE, PIXEL_SIDE)
    images = np.stack(
      [
        np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
        for image in images
      ]
    )
  return images.reshape(len(images), -1).astype(np.float32) / 255
