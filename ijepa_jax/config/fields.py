"""Every config field: the one table of names, defaults, units and sources.

Defaults are the published ViT-H/14 run on ImageNet-1k. A config file starts
from `defaults()`, changes what it needs, and ends with `variant()`.

Sources: [3] and [A.1] are sections of the paper (Assran et al., CVPR 2023,
arXiv 2301.08243v3); [ref] is the authors' code and its four released configs
(github.com/facebookresearch/ijepa). What has no source is this project's.
"""

import functools
import textwrap
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from ijepa_jax import errors
from ijepa_jax.config.field import Field, closest
from ijepa_jax.models import sizes

# fmt: off
_TABLE = (
  Field('seed', 0, '[0, 4294967295]',
        'Of initialisation, data order, crops and masks.'),
  Field('batch_size', 2048, '[1, inf)',
        'Images per update, on all devices together [A.1].'),
  Field('total_epochs', 300, '[1, inf)',
        'Length of the run in passes over the training images [A.1].'),
  Field('total_steps', None, '[1, inf)',
        'Length of the run in updates; wins over total_epochs when set.',
        optional=int),
  Field('init_from', None, None,
        'Workdir of a run, or imported weights, to start a new run from.',
        optional=str, resume=True),
  Field('compilation_cache', 'auto', None,
        'Directory that keeps compiled programs for later starts; auto: '
        '~/.cache/ijepa_jax/compiled on GPU and TPU, none on CPU; off: none.',
        resume=True),
  Field('loss', 'smooth_l1', ('smooth_l1', 'l2', 'l1'),
        'Distance between predictions and targets: smooth_l1 with beta 1 '
        '[ref], l2 [3].'),

  Field('model.variant', 'vit_huge', tuple(sizes.SIZES),
        'Size of the encoders, see models/sizes.py [A.1].'),
  Field('model.patch_size', 14, '[1, inf)',
        'Pixels per side of a patch [A.1].'),
  Field('model.image_size', 224, '[1, inf)',
        'Pixels per side of an image [A.1].'),
  Field('model.dtype', 'auto', ('auto', 'float32', 'bfloat16'),
        'Of matrix products; auto: bfloat16 on GPU and TPU [ref], float32 on '
        'CPU. State, norms and loss are float32.'),
  Field('model.attention', 'xla', ('xla', 'cudnn'),
        'Implementation of attention; cudnn: fused, NVIDIA GPUs only.',
        resume=True),
  Field('model.remat', 'none', ('none', 'dots', 'full'),
        'What to recompute in the backward pass, saving memory: nothing, all '
        'but weight products, all.', resume=True),
  Field('model.unroll', False, None,
        'Unroll the loop over blocks: twice as fast on CPUs, slow to compile.',
        resume=True),
  Field('model.target_buckets', 1, '[1, inf)',
        'Programs for batches with targets of different sizes: more compute '
        'less padding and take longer to compile.', resume=True),
  Field('model.init_std', 0.02, '(0, inf)',
        'Deviation of kernels at the start [ref]; with few channels 0.02 makes '
        'images look alike, 1/sqrt(width) does not.'),
  Field('model.drop_path', 0.0, '[0, 1)',
        'Share of images that skip the last block, rising from 0 at the '
        'first.'),

  Field('predictor.width', 384, '[4, inf)',
        'Channels; a multiple of predictor.heads and of 4 [A.1].'),
  Field('predictor.depth', 12, '[1, inf)',
        'Blocks; 6 for ViT-B, 12 for L and H, 16 for G [A.1].'),
  Field('predictor.heads', None, '[1, inf)',
        "Attention heads; none: the encoder's [A.1].", optional=int),

  Field('mask.num_targets', 4, '[1, inf)',
        'Target blocks per image [A.1].'),
  Field('mask.target_scale', (0.15, 0.2), '(0, 1]',
        'Area of a target block as a share of the image [A.1].'),
  Field('mask.target_aspect', (0.75, 1.5), '(0, inf)',
        'Height / width of a target block [A.1].'),
  Field('mask.context_scale', (0.85, 1.0), '(0, 1]',
        'Area of the context block before the targets are cut out [A.1].'),
  Field('mask.min_keep', 10, '[0, inf)',
        'Context and targets have more patches than this [ref].'),
  Field('mask.context_tokens', None, '[1, inf)',
        'Context patches kept per image; none: the mean that is left by the '
        "reference's cut to the shortest of 128 images.", optional=int),
  Field('mask.target_tokens', None, '[1, inf)',
        'Padded length of a target; none: the largest possible block.',
        optional=int),
  Field('mask.keep', 'first', ('first', 'random'),
        'Which patches stay of a longer context; first: row by row [ref].'),
  Field('mask.bounds', 'reference', ('reference', 'full'),
        'Reach of the blocks; reference: never the last row and column [ref], '
        'full: everywhere, and contexts never overlap targets.'),

  Field('data.source', 'tfds:imagenet2012',
        ('folder', 'tfds:*', 'array_record', 'scenes'),
        'Kind of data set; scenes: drawn on the fly, needs no files.'),
  Field('data.path', None, None,
        'Directory of images or shards; for tfds none: its usual data_dir.',
        optional=str, resume=True),
  Field('data.split', 'train', None,
        'Split, or sub-folder of data.path, to train on.'),
  Field('data.workers', 8, '[0, inf)',
        'Processes that load images, per host; 0: the training process.',
        resume=True),
  Field('data.crop_scale', (0.3, 1.0), '(0, 1]',
        'Area of the random crop as a share of the image [ref].'),
  Field('data.flip', False, None,
        'Flip half of the images from left to right [ref: off].'),
  Field('data.color_jitter', 0.0, '[0, 1]',
        "Strength of SimCLR's colour jitter; 0: off [ref: off]."),
  Field('data.blur', False, None,
        'Blur half of the images [ref: off].'),
  Field('data.decode', 'exact', ('exact', 'fast', 'fastest'),
        'JPEG to pixels; exact: Pillow; fast: within one level of it, large '
        'images at reduced size; fastest: reduced to 0.6 of the pixels per '
        "side. The last two need the extra 'fast'."),
  Field('data.max_bad_share', 0.01, '[0, 1]',
        'Share of unreadable records beyond which the run stops.',
        resume=True),

  Field('optim.lr', 1e-3, '(0, inf)',
        'Learning rate at the end of the warm-up [A.1].'),
  Field('optim.start_lr', 2e-4, '[0, inf)',
        'Learning rate at the start [ref; A.1: 1e-4].'),
  Field('optim.final_lr', 1e-6, '[0, inf)',
        'Learning rate at the end, after half a cosine [A.1].'),
  Field('optim.warmup_epochs', 40.0, '[0, inf)',
        'Length of the linear warm-up in epochs [ref; A.1: 15].'),
  Field('optim.weight_decay', 0.04, '[0, inf)',
        'Of kernels and mask token, at the start [A.1].'),
  Field('optim.final_weight_decay', 0.4, '[0, inf)',
        'The same at the end [A.1].'),
  Field('optim.weight_decay_schedule', 'cosine', ('cosine', 'linear'),
        'Between the two: cosine [ref], linear [A.1].'),
  Field('optim.ema', 0.996, '[0, 1]',
        'Momentum of the target encoder at the start [A.1].'),
  Field('optim.final_ema', 1.0, '[0, 1]',
        'The same at the end; linear between [A.1].'),
  Field('optim.schedule_scale', 1.0, '[1, inf)',
        'Length of the schedules over the length of the run [ref].'),
  Field('optim.clip', 0.0, '[0, inf)',
        'Largest global norm of the gradient; 0: off [ref: off].'),
  Field('optim.accumulate', 1, '[1, inf)',
        'Parts a batch is computed in, one after the other, to save memory.'),

  Field('mesh.data', -1, '[-1, inf)',
        'Copies of the parameters; -1, here and below: all devices that the '
        'others leave.', resume=True),
  Field('mesh.fsdp', 1, '[-1, inf)',
        'Devices that share one copy of the parameters.', resume=True),
  Field('mesh.tensor', 1, '[-1, inf)',
        'Devices that share the heads and hidden channels of each layer.',
        resume=True),

  Field('distributed.start_seconds', 300, '[1, inf)',
        'How long processes wait for each other at the start.', resume=True),
  Field('distributed.heartbeat_seconds', 60, '[1, inf)',
        'A process that gives no sign of life for so long counts as lost, and '
        'the others end.', resume=True),

  Field('checkpoint.every', 1000, '[1, inf)',
        'Updates between two checkpoints.', resume=True),
  Field('checkpoint.keep', 3, '[1, inf)',
        'Latest checkpoints to keep.', resume=True),
  Field('checkpoint.keep_period', None, '[1, inf)',
        'Keep also every checkpoint at a multiple of so many updates.',
        optional=int, resume=True),
  Field('checkpoint.step', None, '[1, inf)',
        'Go back to this checkpoint; newer ones are moved to set_aside/. None: '
        'the newest.', optional=int, resume=True),

  Field('log.every', 50, '[1, inf)',
        'Updates between two rows of metrics.', resume=True),
  Field('log.tensorboard', True, None,
        'Write TensorBoard event files.', resume=True),
  Field('log.wandb', False, None,
        'Write to Weights & Biases.', resume=True),

  Field('eval.every', 5000, '[0, inf)',
        'Updates between two evaluations of the target encoder; 0: off.',
        resume=True),
  Field('eval.split', None, None,
        'Split to test the probes on; none: a part of data.split.',
        optional=str, resume=True),
  Field('eval.train_examples', 5000, '[2, inf)',
        'Images to fit the probes on.', resume=True),
  Field('eval.test_examples', 2000, '[2, inf)',
        'Images to test the probes on.', resume=True),
  Field('eval.crop', 0.875, '(0, 1]',
        'Share of the shorter side that the centre crop keeps.', resume=True),
)
# fmt: on

FIELDS = {field.name: field for field in _TABLE}


def find(name: str) -> Field:
  """The field with the dotted `name`; a UserError if there is none."""
  if name not in FIELDS:
    raise errors.UserError(
      f"unknown field '{name}'; nearest: {closest(name, FIELDS)}"
    )
  return FIELDS[name]


def defaults() -> ConfigDict:
  """The published ViT-H/14 config, where each field keeps its type."""
  config = ConfigDict()
  for field in FIELDS.values():
    section, _, name = field.name.rpartition('.')
    if section and section not in config:
      config[section] = ConfigDict()
    holder = config[section] if section else config
    if field.optional:
      holder[name] = config_dict.placeholder(field.optional)
    else:
      holder[name] = field.default
  return config


def paper(config: ConfigDict) -> None:
  """Applies what the paper says where its code does otherwise [3, A.1]."""
  config.loss = 'l2'
  config.optim.start_lr = 1e-4
  config.optim.warmup_epochs = 15.0
  config.optim.weight_decay_schedule = 'linear'


def variant(config: ConfigDict, name: str) -> ConfigDict:
  """Applies the part of `--config=FILE:NAME` after the colon.

  Args:
    config: changed in place.
    name: '' for the config as it is, 'paper' for the paper's variant.

  Returns:
    The same config.
  """
  if name == 'paper':
    paper(config)
  elif name:
    raise errors.UserError(
      f"unknown variant '{name}' of the config: expected FILE.py or "
      'FILE.py:paper'
    )
  return config


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
  """Maps dotted names to values: {'optim': {'lr': 1}} to {'optim.lr': 1}."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      inner = flatten(value)
      flat.update({f'{key}.{name}': inner[name] for name in inner})
    else:
      flat[key] = value
  return flat


def assign(config: ConfigDict, name: str, value: Any) -> None:
  """Sets the field with the dotted `name`."""
  *sections, last = name.split('.')
  functools.reduce(ConfigDict.__getitem__, sections, config)[last] = value


def changed_fields(old: Mapping[str, Any], new: ConfigDict) -> list[str]:
  """Differences that forbid to resume a run.

  Args:
    old: the config of the run, nested, as read from its checkpoint. A field
      that it lacks is younger than the run and counts as its default.
    new: the config to resume with.

  Returns:
    One text such as 'optim.lr: 0.001 -> 0.002' per fixed field that differs.
  """
  before, after = flatten(old), flatten(new.to_dict())
  changes = []
  for name, field in FIELDS.items():
    was, now = before.get(name, field.default), after[name]
    if isinstance(was, list):  # JSON has no tuples
      was = tuple(was)
    if was != now and not field.resume:
      changes.append(f'{name}: {was} -> {now}')
  return changes


def describe() -> str:
  """The table as text for `--help`."""
  lines = []
  for field in FIELDS.values():
    default = 'none' if field.default is None else field.default
    lines.append(f'  --config.{field.name}={default}')
    for text in (field.doc, f'Expected: {field.expected}'):
      lines.append(textwrap.indent(textwrap.fill(text, 73), ' ' * 6))
  return '\n'.join(lines)
