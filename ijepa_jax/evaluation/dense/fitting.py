"""Trains a sweep of heads on frozen tokens, and keeps the best."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax

from ijepa_jax.evaluation import labels, sweep
from ijepa_jax.evaluation.dense import heads, patches
from ijepa_jax.evaluation.tasks.context import Context
from ijepa_jax.metrics import counting

# Images per call where heads are applied.
_BLOCK = 64
_CHUNK_BYTES = 128 * 2**20


@dataclasses.dataclass(frozen=True)
class Fitted:
  """The best head of a kind.

  Attributes:
    kind: of head.
    params: its parameters, in numpy.
    details: what was chosen, on what, and the whole sweep, as JSON has it.
  """

  kind: heads.Kind
  params: dict[str, np.ndarray]
  details: dict[str, Any]

  def outputs(self, tokens: patches.Patches) -> Iterator[np.ndarray]:
    """`(g, g, outputs)` of every image, one after the other."""
    return _outputs(self.params, self.kind, tokens, np.arange(len(tokens)))


def fit(
  context: Context,
  kinds: Sequence[heads.Kind],
  tokens: patches.Patches,
  *,
  outputs: int,
  loss: Callable[[jax.Array, Any], jax.Array],
  targets: Callable[[np.ndarray], Any],
  score: Callable[[np.ndarray, Iterator[np.ndarray]], float],
) -> list[Fitted]:
  """Trains a head for each kind, learning rate and weight decay.

  A tenth of train is held out and chooses; the chosen head is used as it is.

  Args:
    context: reads its options `steps`, `batch_size`, `lrs`, `weight_decays`.
    kinds: of heads; the best of each is returned.
    tokens: of train.
    outputs: numbers per patch.
    loss: of outputs `(B, g, g, outputs)` and the targets of a batch.
    targets: row numbers -> a tree of arrays with as many rows.
    score: row numbers and their outputs -> the higher the better.
  """
  steps, seed = context.options['steps'], context.seed
  fitted, held = labels.hold_out(len(tokens), seed)
  size = min(context.options['batch_size'], len(fitted))
  grid = [
    (lr, decay)
    for lr in context.options['lrs']
    for decay in context.options['weight_decays']
  ]
  groups = [_group(kind, tokens, outputs, loss, grid) for kind in kinds]
  count = len(kinds) * len(grid)
  with counting.Counter(
    f'{context.kind}, {count} heads',
    steps,
    'steps',
    enabled=jax.process_index() == 0,
  ) as counter:
    stacked = sweep.fit(
      groups,
      _chunks(tokens, targets, fitted, size, steps, seed, counter.add),
      sweep.cosine(steps),
      seed=seed,
      mesh=context.local_mesh,
    )
  about = {
    'features': 'last layer, patches, standardised',
    'chosen on': f'{len(held):,} images held out of train',
    'fitted on': f'the other {len(fitted):,}',
    'steps': steps,
    'batch_size': size,
  }

  def held_out(kind: heads.Kind, params: dict[str, np.ndarray]) -> float:
    return score(held, _outputs(params, kind, tokens, held))

  return [
    best(kind, params, grid, about, functools.partial(held_out, kind))
    for kind, params in zip(kinds, stacked)
  ]


def _group(
  kind: heads.Kind,
  tokens: patches.Patches,
  outputs: int,
  loss: Callable[[jax.Array, Any], jax.Array],
  grid: list[tuple[float, float]],
) -> sweep.Group:
  def init(rng: np.random.Generator) -> sweep.Params:
    return heads.init(rng, kind, tokens.rows.shape[-1], outputs)

  def of_batch(
    params: sweep.Params, hyper: sweep.Hyper, batch: Any
  ) -> jax.Array:
    del hyper
    return loss(heads.apply(params, kind, batch['tokens']), batch['targets'])

  lrs, decays = np.array(grid, np.float32).T
  return sweep.Group(
    init,
    of_batch,
    lambda hyper: optax.adamw(hyper['lr'], weight_decay=hyper['weight_decay']),
    {'lr': lrs, 'weight_decay': decays},
  )


def _chunks(
  tokens: patches.Patches,
  targets: Callable[[np.ndarray], Any],
  rows: np.ndarray,
  size: int,
  steps: int,
  seed: int,
  advance: Callable[[int], None],
) -> Iterator[sweep.Chunk]:
  """Batches; each epoch takes every row once, in another order."""
  length = max(1, _CHUNK_BYTES // (4 * size * tokens.rows[0].size))
  length = min(length, steps)
  order = _endless(rows, seed)
  for first in range(0, steps, length):
    used = min(length, steps - first)
    batches = []
    for _ in range(used):
      here = np.array([next(order) for _ in range(size)])
      batches.append({'tokens': tokens.batch(here), 'targets': targets(here)})
    batches += batches[-1:] * (length - used)  # one shape, one compilation
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
    yield sweep.Chunk(stacked, used)
    advance(used)


def _endless(rows: np.ndarray, seed: int) -> Iterator[int]:
  epoch = 0
  while True:
    yield from np.random.default_rng((seed, epoch)).permutation(rows)
    epoch += 1


def best(
  kind: heads.Kind,
  stacked: sweep.Params,
  grid: list[tuple[float, float]],
  about: dict[str, Any],
  score: Callable[[dict[str, np.ndarray]], float],
) -> Fitted:
  """The head with the highest score, of those that have not diverged.

  Args:
    kind: of all heads.
    stacked: their parameters, with a leading axis of heads.
    grid: learning rate and weight decay of each.
    about: kept with the details.
    score: parameters of one -> the higher the better.

  Raises:
    UserError: all have diverged.
  """
  each = [
    jax.tree.map(lambda leaf: leaf[head], stacked)  # noqa: B023
    for head in range(len(grid))
  ]
  scores = [
    score(params) if usable else None
    for params, usable in zip(each, sweep.finite(stacked))
  ]
  rows = [
    {'lr': lr, 'weight_decay': decay, 'held out': held_out}
    for held_out, (lr, decay) in zip(scores, grid)
  ]
  chosen = sweep.best(scores)
  return Fitted(
    kind,
    each[chosen],
    {'head': kind, 'chosen': rows[chosen], **about, 'sweep': rows},
  )


def _outputs(
  params: Any, kind: heads.Kind, tokens: patches.Patches, rows: np.ndarray
) -> Iterator[np.ndarray]:
  for start in range(0, len(rows), _BLOCK):
    here = rows[start : start + _BLOCK]
    # Filled up: one shape is one compilation.
    block = np.resize(here, _BLOCK)
    outputs = np.asarray(_apply(params, kind, tokens.batch(block)))
    yield from outputs[: len(here)]


@functools.partial(jax.jit, static_argnums=1)
def _apply(params: Any, kind: heads.Kind, tokens: jax.Array) -> jax.Array:
  return heads.apply(params, kind, tokens)
