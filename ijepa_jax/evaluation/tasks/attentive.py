"""Attentive probes of the last layer's patch tokens, 20 of them at once.

V-JEPA 2's evaluation (Assran et al. 2025, arXiv 2506.09985) trains a grid of
learning rates x weight decays in parallel and reports the best; here the best
is chosen on images held out of train. See `evaluation.attentive`.
"""

import functools
from typing import Any

import jax
import numpy as np
import optax

from ijepa_jax.evaluation import attentive, batches, labels, sweep
from ijepa_jax.evaluation.tasks import choosing
from ijepa_jax.evaluation.tasks.context import Context
from ijepa_jax.evaluation.tasks.result import Score
from ijepa_jax.metrics import counting

LRS = (1e-4, 3e-4, 1e-3, 3e-3, 5e-3)
WEIGHT_DECAYS = (0.01, 0.1, 0.4, 0.8)
_LEAST_PER_EPOCH = 16
# Of pixels, which have no attention heads of their own.
_PIXEL_HEADS = 1


def run(context: Context) -> list[Score]:
  """AdamW, cosine after 5 % of linear rise."""
  codes = labels.encode(context.labels('train'))
  tokens = context.tokens('train')  # (n, N, D)
  fitted, held = labels.hold_out(len(tokens), context.seed)
  plan = batches.plan(
    len(fitted),
    batch_size=context.options['batch_size'],
    least_per_epoch=_LEAST_PER_EPOCH,
    epochs=context.options['epochs'],
  )
  heads = (
    _PIXEL_HEADS
    if context.encoder is None
    else context.encoder.architecture.size.heads
  )
  group = _group(codes, tokens.shape[-1], heads)
  what = f'{context.kind}, {len(group)} probes'
  with (
    counting.Counter(
      what, plan.steps, 'steps', enabled=jax.process_index() == 0
    ) as counter,
    jax.default_matmul_precision('highest'),
  ):
    (params,) = sweep.fit(
      [group],
      batches.chunks(
        lambda epoch: tokens,
        codes.codes,
        fitted,
        plan,
        seed=context.seed,
        advance=counter.add,
      ),
      sweep.cosine(plan.steps, warmup=plan.steps // 20),
      seed=context.seed,
      mesh=context.local_mesh,
    )
    predict = functools.partial(_logits, heads=heads)
    candidate = choosing.Candidate(
      f'cross-attention over patch tokens of the last layer, {heads} heads',
      group,
      params,
      predict,
    )
    return choosing.choose(
      context,
      codes,
      [candidate],
      train=tokens,
      held=held,
      test=context.tokens('test'),
      details={
        'batch': plan.batch_size,
        'epochs': plan.epochs,
        'steps': plan.steps,
      },
    )


def _group(codes: labels.Codes, width: int, heads: int) -> sweep.Group:
  mask = codes.mask()

  def init(rng: np.random.Generator) -> attentive.Params:
    return attentive.init(rng, width, codes.width)

  def loss(params: Any, hyper: sweep.Hyper, batch: Any) -> jax.Array:
    return labels.cross_entropy(
      _logits(params, batch['x'], heads), batch['y'], mask, hyper['label']
    )

  def optimiser(hyper: sweep.Hyper) -> optax.GradientTransformation:
    return optax.adamw(
      hyper['lr'], weight_decay=hyper['weight_decay'], mask=attentive.decayed
    )

  return sweep.Group(
    init,
    loss,
    optimiser,
    sweep.grid(LRS, WEIGHT_DECAYS, len(codes.names)),
  )


def _logits(params: Any, tokens: jax.Array, heads: int) -> jax.Array:
  return attentive.logits(params, attentive.normalised(tokens), heads)
