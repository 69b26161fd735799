"""Random crops on the device, as views of images that are there already."""

import jax
import jax.numpy as jnp

# Area and aspect ratio of the recipe's training crops (paper, appendix A.1).
_AREA = (0.3, 1.0)
_ASPECT = (3 / 4, 4 / 3)


def random_crops(images: jax.Array, key: jax.Array) -> jax.Array:
  """A crop of each image, resized to the image's own size.

  Args:
    images: `(B, S, S, 3)` float.
    key: randomness; each image has a crop of its own.
  """
  batch, size = images.shape[:2]
  area_key, aspect_key, corner_key = jax.random.split(key, 3)
  area = jax.random.uniform(
    area_key, (batch,), minval=_AREA[0], maxval=_AREA[1]
  )
  low, high = (jnp.log(ratio) for ratio in _ASPECT)
  aspect = jax.random.uniform(aspect_key, (batch,), minval=low, maxval=high)
  aspect = jnp.exp(aspect)
  sides = jnp.stack([area / aspect, area * aspect], axis=1)  # height, width
  sides = jnp.minimum(jnp.sqrt(sides), 1.0)
  corners = (1 - sides) * jax.random.uniform(corner_key, (batch, 2))

  def crop(image: jax.Array, side: jax.Array, corner: jax.Array) -> jax.Array:
    return jax.image.scale_and_translate(
      image,
      image.shape,
      spatial_dims=(0, 1),
      scale=1 / side,
      translation=-corner * size / side,
      method='linear',
    )

  return jax.vmap(crop)(images, sides, corners)
