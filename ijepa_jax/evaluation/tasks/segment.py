"""Semantic segmentation: heads on frozen patch tokens, mean IoU.

As DINOv2's linear segmentation (Oquab et al. 2023, arXiv 2304.07193, section
7.4): a class per patch from the last layer's token, logits resized bilinearly
to the mask, whose class 255 counts nowhere.
"""

import functools
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ijepa_jax import errors
from ijepa_jax.data import dense
from ijepa_jax.evaluation import intervals
from ijepa_jax.evaluation.dense import (
  fitting,
  heads,
  miou,
  patches,
  resizing,
)
from ijepa_jax.evaluation.tasks import needs
from ijepa_jax.evaluation.tasks.context import Context, SplitName
from ijepa_jax.evaluation.tasks.result import Score

_HEADS: tuple[heads.Kind, ...] = ('linear', 'mlp')
# Masks are looked at in this many places per patch and axis while training.
_FINEST = 4


def run(context: Context) -> list[Score]:
  """One score for each head.

  Raises:
    UserError: no pixel of train has a class.
  """
  train_source = needs.masked(context, 'train', 'segment')
  train_tokens, test_tokens = patches.load(context)
  side = context.grid * min(context.patch_size, _FINEST)
  train = np.stack([_small(mask, side) for mask in _masks(context, 'train')])
  known = train[train != dense.IGNORED]
  if not len(known):
    raise errors.UserError(
      f'task segment: no pixel of {train_source.name} has a class; expected '
      f'numbers below {dense.IGNORED} in the masks'
    )
  names = train_source.mask_classes or _numbers(context, train)
  weights = jnp.asarray(resizing.bilinear(context.grid, side))

  def held_out(rows: np.ndarray, outputs: Iterator[np.ndarray]) -> float:
    counts = [
      _count(train[row], logits, len(names))
      for row, logits in zip(rows, outputs)
    ]
    return miou.mean(miou.stack(counts))

  best = fitting.fit(
    context,
    _HEADS,
    train_tokens,
    outputs=len(names),
    loss=functools.partial(_loss, weights),
    targets=lambda rows: train[rows],
    score=held_out,
  )
  common = int(np.bincount(known, minlength=len(names)).argmax())
  return _scores(context, best, test_tokens, names, common)


def _scores(
  context: Context,
  best: list[fitting.Fitted],
  tokens: patches.Patches,
  names: tuple[str, ...],
  common: int,
) -> list[Score]:
  """Scores of the chosen heads, from one pass over test."""
  columns: list[list[miou.OfImage]] = [[] for _ in best]
  constant = []
  outputs = zip(*(fitted.outputs(tokens) for fitted in best))
  for mask, each in zip(_masks(context, 'test'), outputs):
    for column, logits in zip(columns, each):
      column.append(_count(mask, logits, len(names)))
    guess = np.full(mask.shape, common)
    constant.append(miou.count(mask, guess, len(names)))
  chance = miou.mean(miou.stack(constant))
  return [
    _score(context, fitted, miou.stack(column), chance, names, common)
    for fitted, column in zip(best, columns)
  ]


def _score(
  context: Context,
  fitted: fitting.Fitted,
  counts: miou.Counts,
  chance: float,
  names: tuple[str, ...],
  common: int,
) -> Score:
  low, high = intervals.bootstrap(
    lambda rows: {'mIoU': miou.mean(counts, rows)},
    len(counts.both),
    seed=context.seed,
  )['mIoU']
  shares = {
    name: None if np.isnan(share) else float(share)
    for name, share in zip(names, miou.by_class(counts))
  }
  return Score(
    label=f'mask/{fitted.kind}',
    metric='mIoU',
    value=miou.mean(counts),
    low=low,
    high=high,
    chance=chance,
    details={
      **fitted.details,
      'IoU by class': shares,
      'chance is': f'{names[common]!r} everywhere',
    },
  )


def _masks(context: Context, split: SplitName) -> Iterator[np.ndarray]:
  """Masks of a split, each as large as its image."""
  source = needs.masked(context, split, 'segment')
  for record in context.records(split):
    yield source.mask(int(record))


def _small(mask: np.ndarray, side: int) -> np.ndarray:
  """The mask at `(side, side)` places."""
  rows, columns = (resizing.nearest(old, side) for old in mask.shape)
  return mask[rows[:, None], columns]


def _numbers(context: Context, train: np.ndarray) -> tuple[str, ...]:
  """Class numbers as names, up to the largest of train and of test."""
  largest = max(
    int(mask[mask != dense.IGNORED].max(initial=0))
    for mask in itertools.chain(train, _masks(context, 'test'))
  )
  return tuple(str(number) for number in range(largest + 1))


def _loss(
  weights: jax.Array, outputs: jax.Array, masks: jax.Array
) -> jax.Array:
  """Cross entropy of resized logits, averaged over pixels with a class."""
  logits = jnp.einsum('hy,wx,byxc->bhwc', weights, weights, outputs)
  known = masks != dense.IGNORED
  each = optax.softmax_cross_entropy_with_integer_labels(
    logits, jnp.where(known, masks, 0).astype(jnp.int32)
  )
  return jnp.where(known, each, 0).sum() / jnp.maximum(known.sum(), 1)


def _count(mask: np.ndarray, logits: np.ndarray, classes: int) -> miou.OfImage:
  guess = resizing.upsample(logits, *mask.shape).argmax(-1)
  return miou.count(mask, guess, classes)
