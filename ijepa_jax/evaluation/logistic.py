"""Multinomial logistic regression by L-BFGS, all labels at once.

The objective is scikit-learn's, 1/2 |W|^2 + C * sum of losses, without penalty
on the intercept, divided by C n. All labels are one jitted program, in which a
pass over the features serves all of them.

Features of an encoder are far from independent (condition numbers of 1e4 and
more), and L-BFGS on W takes hundreds of steps. So it works on U with W = V S U:
V has the eigenvectors of the features' covariance, S = 1 / sqrt(h e + penalty)
for its eigenvalues e, where h is the mean curvature of the loss by the logits
at W = 0. There the Hessian by U is about the identity; it is the same objective
with the same minimum in other coordinates.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ijepa_jax.evaluation import labels

_MOST_STEPS = 300
# Largest entry of the gradient of the mean loss at which a fit ends. A tenth of
# scikit-learn's default: what is left of it weighs most where C is large.
_TOLERANCE = 1e-5
_SHORTEST = 1e-6  # step that is tried
_LOGITS = 2**26  # held at once: 256 MB

Params = dict[str, Any]


class Regression:
  """Features on the device, for fits to some of their rows."""

  def __init__(self, x: np.ndarray, codes: np.ndarray, mask: np.ndarray):
    """Takes the features.

    Args:
      x: `(n, F)` float32 features, standardised or not.
      codes: `(n, labels)` as of `labels.Codes`.
      mask: `(labels, width)` as of `labels.Codes.mask`.
    """
    self._count, self._mask = len(x), jnp.asarray(mask)
    # In blocks of rows, whose logits for all labels are all that is held.
    self._rows = max(1, min(len(x), _LOGITS // mask.size))
    self._blocks = jax.device_put((self._cut(x), self._cut(codes)))
    # On the host: XLA would compile longer than LAPACK takes.
    values, vectors = np.linalg.eigh(_moments(self._blocks[0]))
    self._basis = np.maximum(values, 0), vectors

  def fit(
    self,
    used: np.ndarray,
    cs: np.ndarray,
    start: Params | None = None,
    tolerance: float = _TOLERANCE,
  ) -> tuple[Params, np.ndarray]:
    """Fits a model for each label.

    Args:
      used: `(n,)` bool, the rows to fit to.
      cs: `(labels,)` inverse penalties C.
      start: parameters of another fit to begin with, which saves steps.
      tolerance: largest entry of the gradient at which a fit ends.

    Returns:
      `{'kernel': (labels, F, width), 'bias': (labels, width)}`, and steps
      taken `(labels,)`.
    """
    many = int(used.sum())
    penalty = 1.0 / (np.asarray(cs, np.float64) * many)
    if start is None:
      (models, width), features = self._mask.shape, self._blocks[0].shape[2]
      start = {
        'kernel': np.zeros((models, features, width), np.float32),
        'bias': np.zeros((models, width), np.float32),
      }
    params, steps = _fit(
      (*self._blocks, self._cut((used / many).astype(np.float32))),
      self._basis,
      self._mask,
      penalty.astype(np.float32),
      start,
      tolerance,
    )
    return jax.tree.map(np.asarray, params), np.asarray(steps)

  def _cut(self, x: np.ndarray) -> np.ndarray:
    """`(n, ...)` to `(blocks, rows, ...)`, filled up with zeros."""
    filling = -self._count % self._rows
    x = np.pad(x, ((0, filling), *[(0, 0)] * (x.ndim - 1)))
    return x.reshape(-1, self._rows, *x.shape[1:])


@jax.jit
def _moments(x: jax.Array) -> jax.Array:
  """`(F, F)` mean products of features; rows that fill up count as zeros."""

  def add(total: jax.Array, block: jax.Array) -> tuple[jax.Array, None]:
    return total + jnp.matmul(block.T, block, precision='highest'), None

  total, _ = jax.lax.scan(add, jnp.zeros((x.shape[2], x.shape[2])), x)
  return total / (x.shape[0] * x.shape[1])


@jax.custom_vjp
def _mean_loss(
  params: Params,
  blocks: tuple[jax.Array, jax.Array, jax.Array],
  mask: jax.Array,
  label: jax.Array,
) -> jax.Array:
  """Sum over all rows of loss x weight."""
  return _loss_and_gradient(params, blocks, mask, label)[0]


def _loss_and_gradient(
  params: Params, blocks: tuple, mask: jax.Array, label: jax.Array
) -> tuple[jax.Array, Params]:
  """Both in one pass: no block's logits are kept or made twice."""

  def of_block(params: Params, block: tuple) -> jax.Array:
    x, codes, weights = block
    logits = x @ params['kernel'] + params['bias']
    return labels.cross_entropies(logits, codes, mask, label) @ weights

  def add(carry: tuple, block: tuple) -> tuple[tuple, None]:
    found = jax.value_and_grad(of_block)(params, block)
    return jax.tree.map(jnp.add, carry, found), None

  nothing = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
  return jax.lax.scan(add, nothing, blocks)[0]


_mean_loss.defvjp(
  _loss_and_gradient,
  lambda gradient, cotangent: (
    jax.tree.map(lambda leaf: cotangent * leaf, gradient),
    *(None, None, None),
  ),
)


@jax.jit
def _fit(
  blocks: tuple[jax.Array, jax.Array, jax.Array],
  basis: tuple[jax.Array, jax.Array],
  mask: jax.Array,
  penalty: jax.Array,
  start: Params,
  tolerance: float,
) -> tuple[Params, jax.Array]:
  values, vectors = basis
  solver = optax.scale_by_lbfgs()

  def one(
    penalty: jax.Array, label: jax.Array, start: Params
  ) -> tuple[Params, jax.Array]:
    classes = jnp.maximum(jnp.isfinite(mask[label]).sum(), 2)
    curvature = (1 - 1 / classes) / classes
    scale = {
      'kernel': jax.lax.rsqrt(curvature * values + penalty)[:, None],
      'bias': jax.lax.rsqrt(curvature),
    }

    def to_params(u: Params) -> Params:
      params = jax.tree.map(jnp.multiply, scale, u)
      return params | {'kernel': vectors @ params['kernel']}

    def objective(u: Params) -> jax.Array:
      params = to_params(u)
      loss = _mean_loss(params, blocks, mask, label)
      return loss + 0.5 * penalty * jnp.sum(params['kernel'] ** 2)

    def is_steep(by_u: Params) -> jax.Array:
      # The gradient by W, of that by U.
      rotated = jax.tree.map(jnp.divide, by_u, scale)
      gradient = rotated | {'kernel': vectors @ rotated['kernel']}
      return optax.tree.norm(gradient, ord=jnp.inf) > tolerance

    def improve(carry: tuple) -> tuple:
      u, before, state, step, unfinished = carry
      direction, state = solver.update(before[1], state, u)
      u, found = _search(value_and_grad, u, before, direction, unfinished)
      moving = (found[0] < before[0]) & (step + 1 < _MOST_STEPS)
      return u, found, state, step + 1, moving & is_steep(found[1])

    value_and_grad = jax.value_and_grad(objective)
    rotated = start | {'kernel': vectors.T @ start['kernel']}
    u = jax.tree.map(jnp.divide, rotated, scale)
    found = value_and_grad(u)
    carry: Any = u, found, solver.init(u), jnp.array(0), is_steep(found[1])
    u, _, _, step, _ = jax.lax.while_loop(lambda c: c[-1], improve, carry)
    return to_params(u), step

  with jax.default_matmul_precision('highest'):
    return jax.vmap(one)(penalty, jnp.arange(len(mask)), start)


def _search(
  value_and_grad: Callable[[Params], tuple[jax.Array, Params]],
  u: Params,
  found: tuple[jax.Array, Params],
  direction: Params,
  unfinished: jax.Array,
) -> tuple[Params, tuple[jax.Array, Params]]:
  """The first of the steps 1, 1/2, 1/4 ... that goes down far enough.

  Far enough is Armijo's rule, or, where float32 does not resolve how far, that
  the slope along the step has at least halved (Hager & Zhang 2005). Side by
  side all labels search as long as one of them does, so one that is finished
  takes the first step, which nobody uses.
  """
  value, gradient = found
  slope = optax.tree.vdot(gradient, direction)  # of a step -direction

  def refused(carry: tuple) -> jax.Array:
    length, (_, (new_value, new_gradient)) = carry
    down = new_value <= value - 1e-4 * length * slope
    flat = new_value <= value + 1e-6 * jnp.abs(value)
    flat &= jnp.abs(optax.tree.vdot(new_gradient, direction)) <= slope / 2
    first = length > 1
    return first | (~(down | flat) & unfinished & (length > _SHORTEST))

  def halve(carry: tuple) -> tuple:
    length = carry[0] / 2
    new = jax.tree.map(lambda a, b: a - length * b, u, direction)
    return length, (new, value_and_grad(new))

  nowhere = u, (jnp.array(jnp.inf), gradient)
  return jax.lax.while_loop(refused, halve, (jnp.array(2.0), nowhere))[1]


def predict(params: Params, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Codes `(labels, m)` of features `(m, F)`."""
  return np.stack(
    [
      (x @ kernel + bias + absent).argmax(1)
      for kernel, bias, absent in zip(params['kernel'], params['bias'], mask)
    ]
  )
