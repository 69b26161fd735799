"""ViT-S/16 on ImageNet-1k at 224 pixels, 600 epochs.

  python -m ijepa_jax.main --config=configs/vits16.py

Not published: neither the paper nor the authors' code has a ViT-S. This is
ViT-B/16 (vitb16.py) with a smaller encoder; `:paper` as there.
"""

from ml_collections import ConfigDict

from ijepa_jax.config import fields


def get_config(variant: str = '') -> ConfigDict:
  config = fields.defaults()
  config.total_epochs = 600
  config.model.variant = 'vit_small'
  config.model.patch_size = 16
  config.predictor.depth = 6
  return fields.variant(config, variant)
