"""How right predictions are, in numbers."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from ijepa_jax.data.masks import Masks
from ijepa_jax.visualize import figure as fig
from ijepa_jax.visualize.bank import Bank, chance
from ijepa_jax.visualize.prediction import holes

# Kinds of predictions: name, colour.
_KINDS = {
  'trained': ('predicted', fig.COLORS[5]),
  'swapped': ("another image's context", fig.COLORS[0]),
  'untrained': ('random predictor', fig.MUTED),
}


def agreements(
  bank: Bank,
  labels: Mapping[str, np.ndarray],
  targets: np.ndarray,
  masks: Masks,
  predictions: Mapping[str, np.ndarray],
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
  """How often nearest patches are of images with the same label.

  Args:
    bank: of the images after those with masks.
    labels: label name to classes `(n,)` of all images, -1 for none.
    targets: `(n, N, D)`.
    masks: of the first B images.
    predictions: `(B, M, T, D)` by kind.

  Returns:
    Shares, 0..1, by kind and label, `truth` among the kinds; and those of
    patches that are found blindly, by label.
  """
  count = len(masks.context)
  wanted = {name: classes[:count] for name, classes in labels.items()}
  held = {name: classes[count:] for name, classes in labels.items()}
  found = {kind: holes(guess, masks) for kind, guess in predictions.items()}
  found['truth'] = [
    dataclasses.replace(hole, features=targets[i, hole.patches])
    for i, hole in enumerate(found['trained'])
  ]
  shares = {
    kind: bank.agreement(guess, wanted, held) for kind, guess in found.items()
  }
  return shares, {name: chance(wanted[name], held[name]) for name in labels}


def draw_cosines(
  axis: Axes, cosines: Mapping[str, np.ndarray], images: int
) -> None:
  """Histograms of all cosines, one line for each kind of prediction."""
  edges = np.linspace(-1, 1, 101)
  for kind, (name, color) in _KINDS.items():
    values = cosines[kind].ravel()
    heights, _ = np.histogram(values, edges)
    share = heights / len(values)
    axis.stairs(share, edges, color=color, alpha=0.15, fill=True)
    axis.stairs(
      share, edges, color=color, linewidth=1.5,
      label=f'{name}: mean {fig.two_places(values.mean())}',
    )  # fmt: skip
  low = min(float(values.min()) for values in cosines.values())
  axis.set(xlim=(min(-0.2, low), 1.0), ylim=(0, None), yticks=[])
  count = cosines['trained'].size
  _finish(
    axis, f'Cosine of {count:,} predictions of {images} images with targets', 2
  )


def draw_agreements(
  axis: Axes,
  shares: Mapping[str, Mapping[str, float]],
  chances: Mapping[str, float],
) -> None:
  """Dots: how often the nearest patch is of an image with the same label."""
  names = list(chances)
  rows = np.arange(len(names))
  kinds = {**_KINDS, 'truth': ('true features', fig.INK)}
  for kind, (name, color) in kinds.items():
    axis.plot(
      [shares[kind][label] for label in names], rows, 'o', color=color,
      markersize=7, label=name, clip_on=False, alpha=0.85,
    )  # fmt: skip
  axis.plot(
    list(chances.values()), rows, '|', color=fig.INK, markersize=13,
    label='chance',
  )  # fmt: skip
  axis.set(yticks=rows, yticklabels=names, xlim=(0, 1))
  axis.set_ylim(len(names) - 0.5, -0.6)
  axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
  axis.grid(axis='y', color=fig.FAINT, linewidth=0.5)
  _finish(axis, 'Whether nearest patches are of images with the same label', 3)


def _finish(axis: Axes, title: str, columns: int) -> None:
  """Title, legend below in some columns, and few lines."""
  axis.set_title(title, loc='left', fontsize=8.5, color=fig.INK, pad=4)
  axis.spines[['top', 'right', 'left']].set_visible(False)
  axis.spines['bottom'].set_color(fig.FAINT)
  axis.tick_params(axis='x', colors=fig.MUTED, labelsize=8, length=2)
  axis.tick_params(axis='y', colors=fig.INK, labelsize=8, length=0)
  axis.legend(
    frameon=False, fontsize=7.5, loc='upper left',
    bbox_to_anchor=(-0.02, -0.14), ncols=columns, labelcolor=fig.INK,
    columnspacing=1.0, handletextpad=0.4, handlelength=1.5,
  )  # fmt: skip
