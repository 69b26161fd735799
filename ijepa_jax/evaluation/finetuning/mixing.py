"""Mixup and CutMix, and the labels that go with them.

Mixup: Zhang et al. 2018, arXiv 1710.09412. CutMix: Yun et al. 2019, arXiv
1905.04899. As in timm's `Mixup`, mode 'batch': one weight for all images of a
batch, each of which is mixed with the one at the same place from the end; with
both, one of them is drawn for each batch.
"""

import jax
import jax.numpy as jnp


def smooth_one_hot(
  labels: jax.Array, classes: int, smoothing: float
) -> jax.Array:
  """Label distributions `(B, C)`: 1 - s + s / C for the class, else s / C.

  Source: Szegedy et al. 2016, arXiv 1512.00567, section 7.
  """
  one_hot = jax.nn.one_hot(labels, classes)
  return one_hot * (1 - smoothing) + smoothing / classes


def mix(
  key: jax.Array,
  images: jax.Array,
  targets: jax.Array,
  *,
  mixup: float,
  cutmix: float,
) -> tuple[jax.Array, jax.Array]:
  """Mixes each image with another of the batch.

  Args:
    key: of this step.
    images: `(B, H, W, 3)` float.
    targets: `(B, C)` label distributions.
    mixup: both parameters of the beta distribution of weights; 0 is off.
    cutmix: likewise.

  Returns:
    Images and targets, as they came where both are off.
  """
  if not mixup and not cutmix:
    return images, targets
  which, weight_key, place = jax.random.split(key, 3)
  other = images[::-1]

  def blend() -> tuple[jax.Array, jax.Array]:
    weight = jax.random.beta(weight_key, mixup, mixup)
    return weight * images + (1 - weight) * other, weight

  def paste() -> tuple[jax.Array, jax.Array]:
    weight = jax.random.beta(weight_key, cutmix, cutmix)
    inside = cut_box(place, images.shape[1], images.shape[2], weight)
    # What is left of the image, not what was drawn: the border cuts boxes.
    kept = 1 - inside.mean()
    return jnp.where(inside[..., None], other, images), kept

  if mixup and cutmix:
    images, weight = jax.lax.cond(jax.random.bernoulli(which), paste, blend)
  else:
    images, weight = blend() if mixup else paste()
  return images, weight * targets + (1 - weight) * targets[::-1]


def cut_box(
  key: jax.Array, height: int, width: int, weight: jax.Array
) -> jax.Array:
  """Where the other image goes, `(H, W)` bool.

  A box of the image's shape, of a share `1 - weight` of its area, around a
  uniform centre; what lies outside of the image is cut off.
  """
  y = jax.random.randint(key, (), 0, height)
  x = jax.random.randint(jax.random.fold_in(key, 1), (), 0, width)
  ratio = jnp.sqrt(1 - weight)

  def covered(size: int, centre: jax.Array) -> jax.Array:
    side = jnp.floor(size * ratio).astype(jnp.int32)
    first = centre - side // 2
    cells = jnp.arange(size)
    return (cells >= first) & (cells < first + side)

  return covered(height, y)[:, None] & covered(width, x)
