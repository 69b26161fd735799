"""What all pictures of a checkpoint have in common, computed once."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from ijepa_jax import checkpoint_files, encoder, train_step
from ijepa_jax.data import masks as masks_lib
from ijepa_jax.interop import reading
from ijepa_jax.interop.weights import Which
from ijepa_jax.metrics import counting
from ijepa_jax.models import layers
from ijepa_jax.visualize import prediction, recipe
from ijepa_jax.visualize.images import Images

_BATCH = 32
# Images whose blocks are predicted: enough for a distribution.
_PREDICTED = 32
# Of a run, at most so many are compared.
_CHECKPOINTS = 8


class Subject:
  """A checkpoint and the images that it is looked at with.

  Attributes:
    encoder: the one that pictures are of.
    images: see `Images`.
    config: of the run, where the checkpoint is of one.
    patch: `(row, column)` of the first image that some pictures ask about.
  """

  def __init__(
    self,
    checkpoint: str,
    which: Which,
    heads: int | None,
    load_images: Callable[[encoder.Encoder], Images],
    patch: tuple[int, int] | None,
  ):
    """Loads an encoder and images for it.

    Args:
      checkpoint: whatever `ijepa_jax.convert` reads.
      which: the encoder that pictures are of.
      heads: where the checkpoint does not tell.
      load_images: makes them for this encoder.
      patch: see above; None: the most distinctive one.

    Raises:
      UserError: nothing there, damaged, no images, no such patch.
    """
    self._checkpoint, self._which, self._heads = checkpoint, which, heads
    self.encoder = encoder.load_encoder(
      checkpoint, which, heads=heads, field='--checkpoint'
    )
    self.config = recipe.config_of(checkpoint)
    self.images = load_images(self.encoder)
    self._patch = patch

  @property
  def patch_size(self) -> int:
    return self.encoder.architecture.patch_size

  @property
  def grid(self) -> int:
    """Patches per side."""
    return self.encoder.architecture.grid

  @property
  def pixels(self) -> np.ndarray:
    """`(n, S, S, 3)` of the images to be drawn."""
    return self.images.pixels[: self.images.drawn]

  @functools.cached_property
  def features(self) -> np.ndarray:
    """`(n, N, D)` float32 of all images."""
    return encode(self.encoder, self.images.pixels)

  @functools.cached_property
  def targets(self) -> np.ndarray:
    """`(n, N, D)`: features of the target encoder as the loss sees them."""
    if self._which == 'target':
      features = self.features
    else:
      features = encode(
        encoder.load_encoder(self._checkpoint, 'target', heads=self._heads),
        self.images.pixels,
      )
    return prediction.targets(features)

  @functools.cached_property
  def patch(self) -> int:
    """Number of the patch that is asked about in the first image."""
    if self._patch is not None:
      return self._patch[0] * self.grid + self._patch[1]
    distinctive = self.features[0] - self.features.mean((0, 1))
    return int(np.linalg.norm(distinctive, axis=-1).argmax())

  @functools.cached_property
  def masks(self) -> masks_lib.Masks:
    """Of the first images, drawn as the run draws those of its first step."""
    spec = recipe.mask_spec(self.config, self.encoder.architecture)
    count = min(_PREDICTED, len(self.images) // 4)
    count = max(count, self.images.drawn)  # most are left to compare with
    return masks_lib.sample_masks(spec, self._seed, 0, count)

  @functools.cached_property
  def predictor(self) -> prediction.Predictor:
    """Of the checkpoint; a UserError if there is none."""
    held = reading.open_weights(self._checkpoint, self._heads, '--checkpoint')
    return prediction.load(held)

  @functools.cached_property
  def predictions(self) -> dict[str, np.ndarray]:
    """`(B, M, T, D)` of all masked images, and two kinds that must be worse.

    `trained` as in training, `swapped` where the context's pixels are those of
    another image, `untrained` by a predictor with random weights.
    """
    count = len(self.masks.context)
    images = self.images.pixels
    untrained = self.predictor.untrained(self._init_std, self._seed)
    return {
      'trained': self.predictor(images[:count], self.masks),
      'swapped': self.predictor(images[1 : count + 1], self.masks),
      'untrained': untrained(images[:count], self.masks),
    }

  def _untrained_encoder(self) -> encoder.Encoder:
    """The encoder before its first step: of a run, the very same."""
    return encoder.untrained(self.encoder, self._init_std, self._seed)

  def over_training(self) -> Iterator[tuple[str, np.ndarray]]:
    """Features `(n, N, D)` before training, then by checkpoint, oldest first.

    Of a run at most 8 of its checkpoints, the last one that which pictures are
    of; of other files the only one.
    """
    yield (
      'before training',
      encode(self._untrained_encoder(), self.images.pixels),
    )
    run = recipe.folder_of_run(self._checkpoint)
    mine = checkpoint_files.find(self._checkpoint)
    if run is None or mine is None:
      yield 'checkpoint', self.features
      return
    found = [
      path
      for path in checkpoint_files.all_in(run / checkpoint_files.FOLDER)
      if int(path.name) <= int(mine.name)
    ]
    chosen = np.linspace(0, len(found) - 1, min(len(found), _CHECKPOINTS))
    for path in (found[k] for k in chosen.round().astype(int).tolist()):
      name = f'step {int(path.name):,}'
      yield name, self.features if path == mine else self._features_of(path)

  def _features_of(self, path: epath.Path) -> np.ndarray:
    model = encoder.load_encoder(str(path), self._which, heads=self._heads)
    return encode(model, self.images.pixels)

  @property
  def _init_std(self) -> float:
    return self.config.model.init_std if self.config else layers.INIT_STD

  @property
  def _seed(self) -> int:
    return self.config.seed if self.config else 0


def encode(model: encoder.Encoder, images: np.ndarray) -> np.ndarray:
  """Features `(n, N, D)` float32 of images `(n, S, S, 3)` uint8."""
  count = len(images)
  size = min(_BATCH, count)
  parts = []
  with counting.Counter('features', count, 'images') as counter:
    for start in range(0, count, size):
      # The last batch reaches back: one shape is one compilation.
      first = min(start, count - size)
      batch = _encode(model, images[first : first + size])
      parts.append(np.asarray(batch)[start - first :])
      counter.add(len(parts[-1]))
  return np.concatenate(parts)


@jax.jit
def _encode(model: encoder.Encoder, images: jax.Array) -> jax.Array:
  return model(train_step.normalise(jnp.asarray(images)))
