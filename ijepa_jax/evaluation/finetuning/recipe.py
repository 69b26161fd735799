"""How an encoder is fine-tuned: the settings, and named presets."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Settings of one fine-tuning.

  Attributes:
    epochs: passes over the training images.
    min_steps: updates at least, whatever the number of images is.
    batch_size: images per step; cut to the number of training images.
    lr: peak learning rate for a batch of 256; scaled in proportion.
    warmup: share of the updates, however many they are, in which the learning
      rate rises from 0, in a line; then half a cosine down to 0.
    weight_decay: decoupled, on kernels only.
    layer_decay: factor on the learning rate from one block to that below.
    drop_path: rate at the last block, rising linearly from 0 at the first.
    label_smoothing: share of the label spread over all classes.
    mixup: parameter of the beta distribution of weights; 0 is off.
    cutmix: likewise.
    randaugment: magnitude, 0 to 10; None is off.
    crop_scale: least and largest share of the image's area in a crop.
    flip: mirror with probability 0.5.
    ema: decay per step of the averaged weights that are evaluated; 0
      evaluates the last weights.
  """

  epochs: int = 50
  min_steps: int = 0
  batch_size: int = 512
  lr: float = 1.5e-5
  warmup: float = 0.1
  weight_decay: float = 0.05
  layer_decay: float = 0.75
  drop_path: float = 0.0
  label_smoothing: float = 0.1
  mixup: float = 0.0
  cutmix: float = 0.0
  randaugment: float | None = 9.0
  crop_scale: tuple[float, float] = (0.08, 1.0)
  flip: bool = True
  ema: float = 0.0


# Of 50 epochs of 1 % of ImageNet: 12,811 images, 512 at a time. Smaller sets
# would end after a few updates.
_STEPS = 1250

# The paper's 1 % (arXiv 2301.08243, appendix A.2): 3e-5 at a batch of 512, read
# as the peak itself. Its weight decay is 0.05 for ViT-L and 0.4 for ViT-H. It
# names no warm-up and no crops, and adapts MAE's protocol: they are MAE's
# (`main_finetune.py`), a warm-up of 5 epochs.
PAPER = Recipe(min_steps=_STEPS)

# MAE's own, on all of ImageNet: the commands of its release (`FINETUNE.md`),
# which depart from table 9 of arXiv 2111.06377.
_MAE = Recipe(
  min_steps=_STEPS,
  batch_size=1024,
  lr=1e-3,
  mixup=0.8,
  cutmix=1.0,
)

PRESETS = {
  'paper': PAPER,
  'mae-base': dataclasses.replace(
    _MAE, epochs=100, warmup=0.05, lr=5e-4, layer_decay=0.65, drop_path=0.1
  ),
  'mae-large': dataclasses.replace(_MAE, drop_path=0.2),
  'mae-huge': dataclasses.replace(_MAE, drop_path=0.3),
}


def without_augmentation(recipe: Recipe) -> Recipe:
  """The same for labels that crops, flips or colours would make wrong."""
  return dataclasses.replace(
    recipe,
    crop_scale=(1.0, 1.0),
    flip=False,
    randaugment=None,
    mixup=0.0,
    cutmix=0.0,
  )
