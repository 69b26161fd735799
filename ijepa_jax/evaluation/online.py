"""The probes and health figures that a training run takes as it goes."""

import math
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
  """Images of one size with any number of labels, none included.

  Of the images a process has its share; labels and features it has of all.
  """

  images: np.ndarray  # (this process's share of n, S, S, 3) uint8
  labels: Mapping[str, np.ndarray]  # label name -> (n,) integers
  total: int  # n, on all processes


class Inside(NamedTuple):
  """What an encoder does with n images, view by view and block by block.

  Attributes:
    views: (n, q, D) features of q random crops of each image.
    blocks: (n, L, D) features after each block and the final norm.
    entropy: (n, L) mean entropy of attention over heads and patches, as a share
      of its maximum: 1 where all patches get the same weight, 0 where one gets
      it all.
  """

  views: np.ndarray
  blocks: np.ndarray
  entropy: np.ndarray

  def health(self) -> dict[str, float]:
    """health/lidar and, by block, rankme_block/NN and attention_entropy/NN.

    NaN where a feature is not finite.
    """
    figures = {'health/lidar': _measure(health.lidar, self.views)}
    for block in range(self.blocks.shape[1]):
      features, entropy = self.blocks[:, block], self.entropy[:, block]
      figures[f'rankme_block/{block:02}'] = _measure(health.rankme, features)
      figures[f'attention_entropy/{block:02}'] = float(entropy.mean())
    return figures


# Features (n, D) of all images of a set, on every process.
Encode = Callable[[LabelledImages], np.ndarray]


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

  def features(self, encode: Encode) -> tuple[np.ndarray | None, np.ndarray]:
    """Features of train, which only labels need, and of test.

    Args:
      encode: features (n, D) float32 of a set; it is given a whole set at once
        and cuts it into batches itself.
    """
    train = encode(self._train) if self._train.labels else None
    return train, encode(self._test)

  def inside(self, look: Callable[[LabelledImages], Inside]) -> Inside:
    """What `look` finds in the test images."""
    return look(self._test)

  def evaluate(
    self, train: np.ndarray | None, test: np.ndarray
  ) -> dict[str, float]:
    """Health and probes of features.

    Args:
      train: (n, D), or None without labels.
      test: (m, D).

    Returns:
      health/{rankme,feature_std,image_cosine} of the test images and
      probe/LABEL/{knn,linear}. All NaN where a feature is not finite.
    """
    figures = {
      'health/rankme': health.rankme,
      'health/feature_std': health.feature_std,
      'health/image_cosine': health.mean_cosine,
    }
    if not np.isfinite(test).all():
      return dict.fromkeys([*figures, *self._probe_names()], float('nan'))
    results = {name: figure(test) for name, figure in figures.items()}
    return results | self.probe(train, test)

  def probe(
    self, train: np.ndarray | None, test: np.ndarray
  ) -> dict[str, float]:
    """probe/LABEL/{knn,linear} alone; arguments as of `evaluate`."""
    if train is None:
      return {}
    if not (np.isfinite(train).all() and np.isfinite(test).all()):
      return dict.fromkeys(self._probe_names(), float('nan'))
    knn = probes.knn_predict(train, self._train.labels, test)
    linear = probes.ridge_predict(train, self._train.labels, test)
    results = {}
    for name, y in self._test.labels.items():
      results[f'probe/{name}/knn'] = probes.accuracy(knn[name], y)
      results[f'probe/{name}/linear'] = probes.accuracy(linear[name], y)
    return results

  @property
  def chance(self) -> dict[str, float]:
    """Label name -> accuracy of always guessing train's commonest class."""
    return {
      name: probes.chance(y, self._test.labels[name])
      for name, y in self._train.labels.items()
    }

  def _probe_names(self) -> list[str]:
    return [
      f'probe/{name}/{probe}'
      for name in self._train.labels
      for probe in ('knn', 'linear')
    ]


def _measure(
  figure: Callable[[np.ndarray], float], features: np.ndarray
) -> float:
  return figure(features) if np.isfinite(features).all() else math.nan


def as_vectors(images: np.ndarray) -> np.ndarray:
  """Pixels as features, whose probes are what an encoder has to beat.

  Images are averaged down to at most 16 x 16 pixels first.

  Args:
    images: (n, S, S, 3) uint8.

  Returns:
    (n, P * P * 3) float32 in 0..1, P at most 16.
  """
  if images.shape[1] > PIXEL_SIDE:
    size = (PIXEL_SIDE, PIXEL_SIDE)
    small = np.empty((len(images), *size, 3), np.uint8)
    for row, image in enumerate(images):
      pixels = Image.fromarray(image).resize(size, Image.Resampling.BOX)
      small[row] = np.asarray(pixels)
    images = small
  return images.reshape(len(images), -1).astype(np.float32) / 255
