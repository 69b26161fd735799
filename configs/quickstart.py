"""A first run in minutes on two CPU cores, on images that are drawn for it.

  python -m ijepa_jax.main --config=configs/quickstart.py

`:paper` takes the paper's loss and weight decay; the learning rate stays.
"""

from ml_collections import ConfigDict

from ijepa_jax.config import fields


def get_config(variant: str = '') -> ConfigDict:
  config = fields.variant(fields.defaults(), variant)
  config.batch_size = 64
  config.total_steps = 900
  config.model.variant = 'vit_micro'
  config.model.patch_size = 4
  config.model.image_size = 32
  config.model.unroll = True
  # 0.02, the recipe's, is near 1 / sqrt(width) at ViT-H and far below it here:
  # all images would look alike to the encoder, and the targets collapse.
  config.model.init_std = 0.08
  config.predictor.width = 48
  config.predictor.depth = 2
  # Half the published area: objects are small, and a step takes less time. On
  # 8x8 patches the smallest target has 4 and the largest 6.
  config.mask.target_scale = (0.08, 0.12)
  config.mask.min_keep = 3
  config.mask.context_tokens = 24
  config.data.source = 'scenes'
  # The images have no end, so crops would add nothing but cut objects.
  config.data.crop_scale = (1.0, 1.0)
  config.data.workers = 1
  config.optim.start_lr = 1e-4
  config.optim.lr = 2e-3
  config.optim.warmup_epochs = 0.5
  config.optim.final_weight_decay = 0.04
  config.optim.ema = 0.995
  config.checkpoint.every = 300
  config.log.every = 20
  config.eval.every = 300
  config.eval.split = 'test'
  config.eval.train_examples = 4000
  config.eval.test_examples = 2000
  config.eval.crop = 1.0
  return config
