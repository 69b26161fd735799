"""Many small heads trained side by side, in one jitted program.

A sweep is a few groups. The heads of a group have the same shapes and differ in
numbers (learning rate, weight decay, which label), so `vmap` makes one program
of them; the groups stand in it one after the other. The batch is read once for
all heads, which is what a single head spends its time on.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ijepa_jax import errors

Params = Any
Hyper = dict[str, Any]  # of one head: scalars; of a group: (H,) each


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
  """Heads of the same shapes.

  Attributes:
    init: `generator -> params` of one head, in numpy: XLA would compile for a
      second per group to draw them.
    loss: `(params, hyper, batch) -> scalar` of one head.
    optimiser: `hyper -> optimiser` of one head, at its full learning rate.
    hyper: name -> `(H,)`, what heads differ in.
  """

  init: Callable[[np.random.Generator], Params]
  loss: Callable[[Params, Hyper, Any], jax.Array]
  optimiser: Callable[[Hyper], optax.GradientTransformation]
  hyper: dict[str, np.ndarray]

  def __len__(self) -> int:
    return len(next(iter(self.hyper.values())))

  def only(self, head: int) -> 'Group':
    """The group of one of its heads."""
    one = {name: x[head : head + 1] for name, x in self.hyper.items()}
    return dataclasses.replace(self, hyper=one)


@dataclasses.dataclass(frozen=True)
class Chunk:
  """Batches that go to the devices together.

  Attributes:
    batches: tree of `(K, B, ...)`.
    used: how many of the K are meant; the others are filling.
  """

  batches: Any
  used: int


def fit(
  groups: Sequence[Group],
  chunks: Iterable[Chunk],
  factors: np.ndarray,
  *,
  seed: int,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[Params, ...]:
  """Trains all heads.

  Args:
    groups: of heads.
    chunks: the batches, in order. While the devices work on one the next one is
      read, so at most two are in memory.
    factors: `(T,)` what the learning rates are multiplied with, by step.
    seed: of the initial numbers, the same for all heads.
    mesh: batches are split over its devices where they divide by them.

  Returns:
    Parameters of each group in numpy, with a leading axis of heads.
  """
  state = tuple(_start(group, seed) for group in groups)

  @functools.partial(jax.jit, donate_argnums=0)
  def run(state: Any, batches: Any, factors: jax.Array) -> Any:
    def step(state: Any, inputs: tuple) -> tuple[Any, None]:
      batch, factor = inputs
      return tuple(
        _step(group, held, batch, factor) for group, held in zip(groups, state)
      ), None

    return jax.lax.scan(step, state, (batches, factors))[0]

  done = 0
  for chunk in chunks:
    size = len(jax.tree.leaves(chunk.batches)[0])
    # Filling has the factor -1: such a step changes nothing.
    here = np.full(size, -1.0, np.float32)
    here[: chunk.used] = factors[done : done + chunk.used]
    done += chunk.used
    state = run(state, _placed(chunk.batches, mesh), here)
  # In numpy: to take one head of them, XLA would compile for each shape.
  return tuple(jax.tree.map(np.asarray, params) for params, _ in state)


def _start(group: Group, seed: int) -> tuple[Params, Any]:
  def one(hyper: Hyper, params: Params) -> tuple[Params, Any]:
    return params, group.optimiser(hyper).init(params)

  params = group.init(np.random.default_rng(seed))
  stacked = jax.tree.map(
    lambda leaf: np.broadcast_to(np.float32(leaf), (len(group), *leaf.shape)),
    params,
  )
  return jax.jit(jax.vmap(one))(group.hyper, stacked)


def _step(
  group: Group, state: tuple[Params, Any], batch: Any, factor: jax.Array
) -> tuple[Params, Any]:
  def one(params: Params, moments: Any, hyper: Hyper) -> tuple[Params, Any]:
    grads = jax.grad(group.loss)(params, hyper, batch)
    updates, new = group.optimiser(hyper).update(grads, moments, params)
    # Behind the momentum, as PyTorch's optimisers have the learning rate.
    updates = jax.tree.map(lambda u: u * factor, updates)
    return optax.apply_updates(params, updates), new

  new = jax.vmap(one)(*state, group.hyper)
  return jax.tree.map(lambda a, b: jnp.where(factor < 0, a, b), state, new)


def _placed(batches: Any, mesh: jax.sharding.Mesh | None) -> Any:
  if mesh is None:
    return batches
  leaves = jax.tree.leaves(batches)
  divides = all(leaf.shape[1] % mesh.devices.size == 0 for leaf in leaves)
  spec = jax.sharding.PartitionSpec(None, mesh.axis_names if divides else None)
  return jax.device_put(batches, jax.sharding.NamedSharding(mesh, spec))


def finite(params: Params) -> np.ndarray:
  """`(H,)` bool, heads whose numbers are all finite."""
  checks = [
    np.isfinite(leaf).reshape(len(leaf), -1).all(1)
    for leaf in jax.tree.leaves(params)
  ]
  return np.all(checks, axis=0)


def best(scores: Sequence[float | None]) -> int:
  """Which head has the highest score; the first of equals.

  Args:
    scores: None of heads that have diverged.

  Raises:
    UserError: all have.
  """
  usable = [head for head, score in enumerate(scores) if score is not None]
  if not usable:
    raise errors.UserError(
      f'all {len(scores)} heads of the sweep have diverged; expected finite '
      'features, or smaller learning rates'
    )
  return max(usable, key=lambda head: scores[head] or 0.0)


def grid(
  lrs: Sequence[float], weight_decays: Sequence[float], labels: int
) -> dict[str, np.ndarray]:
  """`hyper` of a group: all learning rates x weight decays for each label."""
  rows = list(itertools.product(range(labels), lrs, weight_decays))
  label, lr, weight_decay = np.array(rows, np.float32).T
  return {
    'lr': lr,
    'weight_decay': weight_decay,
    'label': label.astype(np.int32),
  }


def cosine(steps: int, warmup: int = 0) -> np.ndarray:
  """`(T,)` factors: a linear rise, then a cosine from 1 to 0."""
  step = np.arange(steps)
  rising = (step + 1) / max(1, warmup)
  falling = 0.5 * (1 + np.cos(np.pi * (step - warmup) / max(1, steps - warmup)))
  return np.where(step < warmup, rising, falling).astype(np.float32)


def staircase(epochs: int, per_epoch: int, every: int) -> np.ndarray:
  """`(T,)` factors: divided by 10 after each `every` epochs."""
  epoch = np.repeat(np.arange(epochs), per_epoch)
  return (0.1 ** (epoch // every)).astype(np.float32)
