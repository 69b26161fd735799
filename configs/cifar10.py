"""CIFAR-10 as JPEG or PNG files, ViT-Ti/4 at 32 pixels, for one GPU.

  python -m ijepa_jax.main --config=configs/cifar10.py --config.data.path=DIR

DIR holds `train/CLASS/*.jpg` and `test/CLASS/*.jpg`. `:paper` takes the
paper's loss and weight decay; the learning rate stays.
"""

from ml_collections import ConfigDict

from ijepa_jax.config import fields


def get_config(variant: str = '') -> ConfigDict:
  config = fields.variant(fields.defaults(), variant)
  config.batch_size = 256
  config.total_epochs = 100
  config.model.variant = 'vit_tiny'
  config.model.patch_size = 4
  config.model.image_size = 32
  config.model.unroll = True
  config.predictor.width = 192
  config.predictor.depth = 6
  # On 8x8 patches the smallest target has 9. The mean context has 22; the
  # published cut to the shortest of a batch would leave 12 of them.
  config.mask.min_keep = 8
  config.mask.context_tokens = 24
  config.data.source = 'folder'
  config.optim.warmup_epochs = 10.0
  config.eval.split = 'test'
  config.eval.every = 1000
  config.eval.crop = 1.0
  return config
