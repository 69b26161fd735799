"""Of a sweep's heads, for each label the best on held-out images, on test."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ijepa_jax.evaluation import intervals, labels, sweep
from ijepa_jax.evaluation.tasks import scoring
from ijepa_jax.evaluation.tasks.context import Context
from ijepa_jax.evaluation.tasks.result import Score

_BLOCK_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
  """A group of trained heads.

  Attributes:
    inputs: what they look at, in words.
    group: with 'lr', 'weight_decay' and 'label' of each.
    params: of all heads.
    logits: `(params, features) -> (B, width)` of one head.
  """

  inputs: str
  group: sweep.Group
  params: Any
  logits: Callable[[Any, jax.Array], jax.Array]

  def only(self, head: int) -> 'Candidate':
    """The same with one of its heads."""
    return dataclasses.replace(
      self,
      group=self.group.only(head),
      params=jax.tree.map(lambda leaf: leaf[head : head + 1], self.params),
    )

  def settings(self, head: int) -> dict[str, Any]:
    """What tells a head from the others."""
    return {
      'inputs': self.inputs,
      **{
        name: float(f'{self.group.hyper[name][head]:.6g}')
        for name in ('lr', 'weight_decay')
      },
    }

  def predict(
    self, mask: np.ndarray, features: np.ndarray, rows: np.ndarray
  ) -> np.ndarray:
    """Codes `(H, n)` that the heads predict.

    Args:
      mask: as of `labels.Codes.mask`.
      features: mapped from disk, perhaps.
      rows: `(n,)` which of them, rising.
    """
    of_label = jnp.asarray(mask)

    @jax.jit
    def run(params: Any, block: jax.Array) -> jax.Array:
      def one(params: Any, label: Any) -> jax.Array:
        return (self.logits(params, block) + of_label[label]).argmax(1)

      return jax.vmap(one)(params, self.group.hyper['label'])

    params = jax.device_put(self.params)
    size = max(1, min(len(rows), _BLOCK_BYTES // features[0].nbytes))
    parts = []
    for start in range(0, len(rows), size):
      numbers = rows[start : start + size]
      block = np.zeros((size, *features.shape[1:]), np.float32)
      block[: len(numbers)] = features[numbers]
      parts.append(np.asarray(run(params, block))[:, : len(numbers)])
    return np.concatenate(parts, axis=1)


def choose(
  context: Context,
  codes: labels.Codes,
  candidates: Sequence[Candidate],
  *,
  train: np.ndarray,
  held: np.ndarray,
  test: np.ndarray,
  details: dict[str, Any],
) -> list[Score]:
  """Chooses, and measures what was chosen once on test.

  Args:
    context: has the labels of test.
    codes: of train.
    candidates: all heads.
    train: features of train.
    held: rows of them that no head was trained on.
    test: features of test.
    details: kept with the scores.
  """
  mask = codes.mask()
  # Of each label: held-out accuracy (None: diverged), candidate, head.
  tried: list[list[tuple[float | None, int, int]]] = [[] for _ in codes.names]
  for number, candidate in enumerate(candidates):
    predicted = candidate.predict(mask, train, held)
    usable = sweep.finite(candidate.params)
    for head, label in enumerate(candidate.group.hyper['label'].tolist()):
      right = predicted[head] == codes.codes[held, label]
      share = float(right.mean()) if usable[head] else None
      tried[label].append((share, number, head))
  scores = []
  for label, name in enumerate(codes.names):
    shares = [share for share, _, _ in tried[label]]
    best = sweep.best(shares)
    share, number, head = tried[label][best]
    low, high = intervals.wilson(round((share or 0.0) * len(held)), len(held))
    chosen = candidates[number].only(head)
    code = chosen.predict(mask, test, np.arange(len(test)))[0]
    found = {
      'chosen': chosen.settings(0),
      'chosen on': f'{len(held):,} images held out of train',
      'held-out top1': share,
      'held-out interval': (low, high),
      'fitted on': len(train) - len(held),
      'heads': len(shares),
      'heads within the interval': sum((one or 0.0) >= low for one in shares),
      'sweep': [
        {**candidates[of].settings(head), 'held-out top1': one}
        for one, of, head in tried[label]
      ],
      **details,
    }
    scores.append(
      scoring.top1(name, codes.classes[label][code], context, found)
    )
  return scores
