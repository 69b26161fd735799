"""Linear classifiers trained by gradient: the paper's protocol and DINOv2's.

Both train every combination of their grid at once, choose on images held out
of train, and report the chosen one once on test. `docs/evaluation.md` says
where they depart from their sources, and why.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from ijepa_jax.evaluation import batches, labels, moments, sweep
from ijepa_jax.evaluation.tasks import choosing
from ijepa_jax.evaluation.tasks.context import Context
from ijepa_jax.evaluation.tasks.result import Score
from ijepa_jax.evaluation.wanted import View
from ijepa_jax.metrics import counting

_KERNEL_STD = 0.01


@dataclasses.dataclass(frozen=True)
class Preset:
  """A protocol.

  Attributes:
    lrs: learning rates, of which `batch_scaled` says what they mean.
    batch_scaled: whether they are for 256 images and grow with the batch.
    weight_decays: of the kernel.
    epochs: how often the images are seen.
    least_steps: more epochs where those are fewer steps.
    batch_size: of sets large enough.
    optimiser: learning rate and weight decay to an optimiser.
    every: epochs after which the learning rate is divided by 10; None: cosine.
  """

  lrs: tuple[float, ...]
  batch_scaled: bool
  weight_decays: tuple[float, ...]
  epochs: int
  least_steps: int
  batch_size: int
  optimiser: Callable[[sweep.Hyper], optax.GradientTransformation]
  every: int | None


def _lars(hyper: sweep.Hyper) -> optax.GradientTransformation:
  kernels = {'kernel': True, 'bias': False}
  return optax.lars(
    hyper['lr'],
    hyper['weight_decay'],
    weight_decay_mask=kernels,
    trust_ratio_mask=kernels,
  )


def _sgd(hyper: sweep.Hyper) -> optax.GradientTransformation:
  return optax.chain(
    optax.add_decayed_weights(
      hyper['weight_decay'], mask={'kernel': True, 'bias': False}
    ),
    optax.sgd(hyper['lr'], momentum=0.9),
  )


PRESETS = {
  # Assran et al. 2023, appendix A: batch 16,384, which VISSL's rule turns into
  # 64 times the learning rates. LARS sets a step's size by the weights' own, so
  # that stays right for the smaller batches of smaller sets.
  'paper': Preset(
    lrs=(0.064 * 1, 0.064 * 10, 0.064 * 50),
    batch_scaled=False,
    weight_decays=(5e-4, 0.0),
    epochs=50,
    least_steps=0,
    batch_size=16_384,
    optimiser=_lars,
    every=15,
  ),
  # Oquab et al. 2023, `eval/linear.py`: 12,500 steps of 1,024, 10 epochs of
  # ImageNet.
  'dinov2': Preset(
    lrs=(
      *(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3),
      *(2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1),
    ),
    batch_scaled=True,
    weight_decays=(0.0,),
    epochs=10,
    least_steps=2_500,
    batch_size=1_024,
    optimiser=_sgd,
    every=None,
  ),
}
# ImageNet's steps per epoch at a batch of 16,384.
_LEAST_PER_EPOCH = 78


@dataclasses.dataclass(frozen=True)
class Inputs:
  """What the heads of a group look at.

  Attributes:
    layers: last blocks, side by side.
    batch_norm: whether features are normalised first.
  """

  layers: int
  batch_norm: bool

  def __str__(self) -> str:
    layers = 'last layer' if self.layers == 1 else f'last {self.layers} layers'
    return layers + (', BatchNorm' if self.batch_norm else '')


def run(context: Context) -> list[Score]:
  """The preset that the options name."""
  preset = PRESETS[context.options['preset']]
  codes = labels.encode(context.labels('train'))
  centre = context.pooled('train')  # (n, L, D)
  fitted, held = labels.hold_out(len(centre), context.seed)
  plan, factors = _schedule(preset, context.options['epochs'], len(fitted))
  statistics = moments.of(centre, fitted)
  inputs = [
    Inputs(count, batch_norm)
    for count in sorted({1, centre.shape[1]})
    for batch_norm in (False, True)
  ]
  groups = [group(preset, plan, one, codes, statistics) for one in inputs]
  what = f'{context.kind}, {sum(map(len, groups))} heads'
  with (
    counting.Counter(
      what, plan.steps, 'steps', enabled=jax.process_index() == 0
    ) as counter,
    jax.default_matmul_precision('highest'),
  ):
    trained = sweep.fit(
      groups,
      batches.chunks(
        functools.partial(_features, context),
        codes.codes,
        fitted,
        plan,
        seed=context.seed,
        advance=counter.add,
      ),
      factors,
      seed=context.seed,
      mesh=context.local_mesh,
    )
    candidates = [
      choosing.Candidate(
        str(one),
        heads,
        params,
        functools.partial(_logits, inputs=one, statistics=statistics),
      )
      for one, heads, params in zip(inputs, groups, trained)
    ]
    return choosing.choose(
      context,
      codes,
      candidates,
      train=centre,
      held=held,
      test=context.pooled('test'),
      details={
        'batch': plan.batch_size,
        'epochs': plan.epochs,
        'steps': plan.steps,
        'augmented views': context.options['views'],
      },
    )


def _schedule(
  preset: Preset, epochs: int | None, images: int
) -> tuple[batches.Plan, np.ndarray]:
  """How long, and factors of the learning rate; None: the preset's epochs."""
  plan = batches.plan(
    images,
    batch_size=preset.batch_size,
    least_per_epoch=_LEAST_PER_EPOCH,
    epochs=epochs or preset.epochs,
  )
  if epochs is None:
    least = -(-preset.least_steps // plan.per_epoch)
    plan = dataclasses.replace(plan, epochs=max(plan.epochs, least))
  if preset.every is None:
    return plan, sweep.cosine(plan.steps)
  every = max(1, round(preset.every * plan.epochs / preset.epochs))
  return plan, sweep.staircase(plan.epochs, plan.per_epoch, every)


def _features(context: Context, epoch: int) -> np.ndarray:
  """`(n, L, D)` of train that an epoch sees."""
  views = context.options['views']
  if not views:
    return context.pooled('train')
  crop = (0.08, 1.0) if context.options['crop'] == 'random' else None
  return context.pooled('train', View(epoch % views, context.seed, crop))


def group(
  preset: Preset,
  plan: batches.Plan,
  inputs: Inputs,
  codes: labels.Codes,
  statistics: moments.Moments,
) -> sweep.Group:
  """All heads of these inputs: learning rates x weight decays x labels."""
  scale = plan.batch_size / 256 if preset.batch_scaled else 1.0
  mask = codes.mask()

  def init(rng: np.random.Generator) -> dict[str, np.ndarray]:
    width = inputs.layers * statistics.mean.shape[-1]
    kernel = rng.normal(0.0, _KERNEL_STD, (width, codes.width))
    return {'kernel': kernel, 'bias': np.zeros(codes.width)}

  def loss(params: Any, hyper: sweep.Hyper, batch: Any) -> jax.Array:
    logits = _logits(params, batch['x'], inputs, statistics)
    return labels.cross_entropy(logits, batch['y'], mask, hyper['label'])

  return sweep.Group(
    init,
    loss,
    preset.optimiser,
    sweep.grid(
      [lr * scale for lr in preset.lrs], preset.weight_decays, len(codes.names)
    ),
  )


def _logits(
  params: Any, x: jax.Array, inputs: Inputs, statistics: moments.Moments
) -> jax.Array:
  """`(B, L, D)` to `(B, width)`."""
  if inputs.batch_norm:
    x = (x - statistics.mean) * statistics.scale
  x = x[:, -inputs.layers :].reshape(len(x), -1)
  return x @ params['kernel'] + params['bias']
