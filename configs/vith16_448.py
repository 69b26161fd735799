"""ViT-H/16 on ImageNet-1k at 448 pixels, 300 epochs: 81.1 % linear.

  python -m ijepa_jax.main --config=configs/vith16_448.py

The authors' `in1k_vith16-448_ep300.yaml`; `:paper` as in vith14.py.
"""

from ml_collections import ConfigDict

from ijepa_jax.config import fields


def get_config(variant: str = '') -> ConfigDict:
  config = fields.defaults()
  config.model.patch_size = 16
  config.model.image_size = 448
  # The reference's cut leaves 271 tokens on average with 16 images per GPU.
  config.mask.context_tokens = 272
  return fields.variant(config, variant)
