"""ViT-L/16 on ImageNet-1k at 224 pixels, 600 epochs: 77.5 % linear.

  python -m ijepa_jax.main --config=configs/vitl16.py

Published in the paper: epochs, predictor, batch, and what `:paper` sets. The
authors released no config for it: without `:paper`, loss and schedules are
those of their ViT-H/14.
"""

from ml_collections import ConfigDict

from ijepa_jax.config import fields


def get_config(variant: str = '') -> ConfigDict:
  config = fields.defaults()
  config.total_epochs = 600
  config.model.variant = 'vit_large'
  config.model.patch_size = 16
  return fields.variant(config, variant)
