"""What `python -m ijepa_jax.evaluate` can measure.

A task is a module with `run(context: Context) -> list[Score]`. It is called
once for each feature extractor: the trained encoder, one that was never
trained, and raw pixels.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from ijepa_jax.config import arguments
from ijepa_jax.evaluation import subsets
from ijepa_jax.evaluation.finetuning import recipe


@dataclasses.dataclass(frozen=True)
class Option:
  """A setting of a task: `--TASK.NAME=VALUE`.

  Attributes:
    name: without the task's.
    default: its value, whose type is the option's.
    help: what it is.
    kind: makes the value of a text.
  """

  name: str
  default: Any
  help: str
  kind: Callable[[str], Any]


@dataclasses.dataclass(frozen=True)
class Task:
  """A protocol.

  Attributes:
    module: with `run`, below `ijepa_jax.evaluation.tasks`.
    summary: what it is, in half a line.
    options: what the user may set.
    settings: what `run` finds among its options besides.
    needs: as of `needs.require`.
  """

  module: str
  summary: str
  options: tuple[Option, ...] = ()
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  needs: tuple[str, ...] = ('labels',)

  def load(self) -> Callable[..., Any]:
    """`run`; the module is imported now and not before."""
    return importlib.import_module(f'{__name__}.{self.module}').run


def _heads(
  lrs: tuple[float, ...], weight_decays: tuple[float, ...]
) -> tuple[Option, ...]:
  """Options of tasks that train heads on patch tokens."""
  each = 'of the sweep, with commas between; all combinations are trained'
  return (
    Option('steps', 1000, 'updates of each head', arguments.positive),
    Option('batch_size', 64, 'images per update', arguments.positive),
    Option('lrs', lrs, f'learning rates {each}', arguments.numbers),
    Option(
      'weight_decays',
      weight_decays,
      f'weight decays {each}',
      arguments.numbers,
    ),
  )


# Those named like a field of `recipe.Recipe` replace it.
_FINETUNE = (
  Option(
    'preset',
    'paper',
    f'one of {", ".join(recipe.PRESETS)}',
    arguments.choice(*recipe.PRESETS),
  ),
  Option(
    'augment',
    'auto',
    'crop, flip, RandAugment and mixing: yes, no, or auto: all but scenes',
    arguments.choice('auto', 'yes', 'no'),
  ),
  Option('workers', 0, 'processes that read images', arguments.count),
  *(
    Option(name, None, f"{text}; default: the preset's", kind)
    for name, text, kind in (
      ('epochs', 'passes over the images', arguments.positive),
      ('min_steps', 'updates at least, off with epochs', arguments.positive),
      ('batch_size', 'images per update', arguments.positive),
      ('lr', 'peak learning rate of a batch of 256', arguments.share),
      ('weight_decay', 'of kernels, decoupled', arguments.share),
      ('layer_decay', 'factor on lr from block to block', arguments.share),
      ('drop_path', 'rate at the last block', arguments.share),
      ('mixup', 'parameter of its beta distribution', arguments.share),
      ('cutmix', 'parameter of its beta distribution', arguments.share),
      ('ema', 'decay of the weights evaluated', arguments.share),
    )
  ),
)

_LINEAR = (
  Option('epochs', None, "epochs; default: the preset's", arguments.positive),
  Option('views', 0, 'augmented copies of train', arguments.count),
  Option(
    'crop',
    'random',
    'of the copies, which are also mirrored: random or centre',
    arguments.choice('random', 'centre'),
  ),
)

TASKS: dict[str, Task] = {
  'knn': Task(
    'knn',
    "weighted k nearest neighbours, DINO's protocol",
    (Option('k', 20, 'neighbours reported', arguments.positive),),
  ),
  'ridge': Task('ridge', 'linear classifier in closed form'),
  'logistic': Task('logistic', 'logistic regression, L-BFGS, a grid of C'),
  'linear-paper': Task(
    'linear',
    "linear classifiers, the paper's protocol: LARS, 24 heads",
    _LINEAR,
    {'preset': 'paper'},
  ),
  'linear-dinov2': Task(
    'linear',
    "linear classifiers, DINOv2's protocol: SGD, 52 heads",
    _LINEAR,
    {'preset': 'dinov2'},
  ),
  'attentive': Task(
    'attentive',
    'attentive probe on patch tokens, AdamW, 20 heads',
    (
      Option('epochs', 20, 'epochs', arguments.positive),
      Option(
        'batch_size',
        256,
        'images per step, fewer for small sets',
        arguments.positive,
      ),
    ),
  ),
  'robustness': Task(
    'robustness',
    'the ridge probe on test images with 7 corruptions at 5 severities',
  ),
  'segment': Task(
    'segment',
    'linear and MLP heads on patch tokens, mIoU of masks',
    _heads(lrs=(1e-3, 3e-3, 1e-2), weight_decays=(1e-4, 1e-2)),
    needs=('masks',),
  ),
  'detect': Task(
    'detect',
    "centres and boxes from patch tokens, COCO's AP",
    _heads(lrs=(1e-3, 3e-3), weight_decays=(1e-4,)),
    needs=('boxes', 'pycocotools'),
  ),
  'count': Task(
    'regress',
    "number of objects, as Clevr's Count",
    settings={'of': 'count'},
    needs=('boxes',),
  ),
  'distance': Task(
    'regress',
    "how near and where the largest object is, after Clevr's Dist",
    settings={'of': 'distance'},
    needs=('boxes',),
  ),
  'finetune': Task(
    'finetune', 'the whole encoder is trained, label by label', _FINETUNE
  ),
  'lowshot': Task(
    'lowshot',
    'few labels, several seeds: logistic regression and fine-tuning',
    (
      Option(
        'subsets',
        ('1%', '10%'),
        'of each class a share, or a number of images',
        subsets.amounts,
      ),
      Option('seeds', 3, 'subsets of each size', arguments.positive),
      Option(
        'methods',
        ('logistic', 'finetune'),
        'with commas between',
        arguments.choices('logistic', 'finetune'),
      ),
      *_FINETUNE,
    ),
  ),
}

# What a user may write for several tasks.
GROUPS: dict[str, tuple[str, ...]] = {
  'linear': ('linear-paper', 'linear-dinov2'),
  'dense': ('segment', 'detect', 'count', 'distance'),
  # Of labels and frozen features.
  'all': (
    'knn',
    'ridge',
    'logistic',
    'linear-paper',
    'linear-dinov2',
    'attentive',
    'robustness',
  ),
}
