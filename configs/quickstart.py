"""A first run in minutes on two CPU cores, on images that are drawn for it.

  python -m ijepa_jax.main --config=configs/quickstart.py

`:paper` takes the paper's loss and weight decay; the learning rate stays.
"""

from ml_collections import ConfigDict

from ijepa_jax.config import fields


def get_config(variant: str = '') -> ConfigDict:
  config = fields.variant(fields.defaults(), variant)
  config.batch_size = 64
  config.total_steps = 1000
  config.model.variant = 'vit_micro'
  config.model.patch_size = 4
  config.model.image_size = 32
  config.model.unroll = True
  # 0.02, the recipe's, is near 1 / sqrt(width) at ViT-H and far below it here:
  # all images would look alike to the encoder, and targets collapse.
  config.model.init_std = 0.08
  config.predictor.width = 96
  config.predictor.depth = 2
  # On 8x8 patches the smallest target has 9. The mean context has 22; the
  # published cut to the shortest of a batch would leave 14 of them.
  config.mask.min_keep = 8
  config.mask.context_tokens = 24
  config.data.source = 'scenes'
  config.data.workers = 1
  config.optim.warmup_epochs = 1.0
  # A run this short needs targets that follow the encoder faster.
  config.optim.ema = 0.98
  config.checkpoint.every = 250
  config.log.every = 10
  config.eval.every = 250
  config.eval.split = 'test'
  config.eval.crop = 1.0
  return config
