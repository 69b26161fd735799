"""How many directions features use: their singular values."""

import dataclasses
import os
from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from ijepa_jax.evaluation import health
from ijepa_jax.visualize import figure as fig
from ijepa_jax.visualize.products import products
from ijepa_jax.visualize.sheet import Sheet

TITLE = 'How many directions the features use: singular values'
EXPLANATION = (
  'Singular values of the features of many images, whole images and single '
  'patches, over training where there are several checkpoints: a steep fall is '
  'collapse.'
)


@dataclasses.dataclass(frozen=True)
class Spectrum:
  """Singular values of a matrix of features.

  Attributes:
    values: over the largest, falling.
    rankme: the directions that are in use.
    rows: of the matrix.
  """

  values: np.ndarray
  rankme: float
  rows: int


def spectrum(features: np.ndarray) -> Spectrum:
  """Of features `(n, D)`; not centred, as in RankMe."""
  squares = np.linalg.eigvalsh(products(features))[::-1]
  values = np.sqrt(np.clip(squares[: min(features.shape)], 0, None))
  # A diagonal matrix has the same RankMe, and is small.
  rankme = health.rankme(np.diag(values))
  return Spectrum(values / max(values[0], 1e-300), rankme, len(features))


def draw_spectrum(
  path: str | os.PathLike,
  pooled: Mapping[str, Spectrum],
  patches: Mapping[str, Spectrum],
) -> None:
  """Draws spectra by checkpoint, the first one before training.

  Args:
    path: of the PNG, written atomically.
    pooled: of average-pooled features.
    patches: of the features of single patches.
  """
  last = list(pooled.values())[-1]
  width = len(list(patches.values())[-1].values)
  sheet = Sheet(
    0,
    0,
    title=TITLE,
    text='Each line is the singular values of a matrix of features, a row per '
    'image (left) or patch (right), over the largest. A flat line uses all '
    'directions alike, a steep one only a few; a fall to nothing behind the '
    'first is collapse: every image looks the same to the encoder. RankMe puts '
    'it in one number, the directions that are in use: at most '
    f'{len(last.values)} (left) and {width} (right). Grey: the encoder before '
    'its first step. A final layer norm takes one direction away.',
    foot=3.15,
  )
  half = (sheet.width - 1.8) / 2
  for k, (title, spectra) in enumerate(
    (
      (f'{last.rows:,} images, patches averaged', pooled),
      (f'{list(patches.values())[-1].rows:,} patches', patches),
    )
  ):
    axis = sheet.foot(0.5 + k * (half + 0.8), half, 0.25, 2.55)
    _draw(axis, title, spectra, _colors(len(spectra)))
  sheet.save(path)


def _colors(count: int) -> list:
  """Grey for the first, then from light to dark."""
  later = colormaps['viridis_r'](np.linspace(0.2, 0.9, max(count - 1, 1)))
  return [fig.MUTED, *later][:count]


def _draw(
  axis: Axes, title: str, spectra: Mapping[str, Spectrum], colors: list
) -> None:
  for (step, found), color in zip(spectra.items(), colors):
    axis.plot(
      np.arange(1, len(found.values) + 1),
      np.maximum(found.values, 1e-9),
      color=color,
      linewidth=1.8,
      label=f'{step}: RankMe {found.rankme:.1f}',
    )
  lowest = min(found.values[:-1].min() for found in spectra.values())
  axis.set(yscale='log', ylim=(max(lowest, 1e-7) / 3, 1.5))
  axis.set_title(title, loc='left', fontsize=9.5, color=fig.INK, weight='bold')
  axis.set_xlabel('singular value, by size', fontsize=8.5, color=fig.MUTED)
  axis.set_ylabel('share of the largest', fontsize=8.5, color=fig.MUTED)
  axis.spines[['top', 'right']].set_visible(False)
  axis.spines[['left', 'bottom']].set_color(fig.FAINT)
  axis.tick_params(colors=fig.MUTED, labelsize=8, length=0, which='both')
  axis.grid(color=fig.FAINT, linewidth=0.5)
  axis.set_axisbelow(True)
  axis.legend(frameon=False, fontsize=8, labelcolor=fig.INK)
