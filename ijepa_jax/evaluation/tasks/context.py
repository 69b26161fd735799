"""What a task sees: one feature extractor, and the images to try it on."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np

from ijepa_jax import encoder as encoders
from ijepa_jax import errors
from ijepa_jax.evaluation import corruptions, labelled
from ijepa_jax.evaluation.extraction import Extractor
from ijepa_jax.evaluation.feature_store import Features
from ijepa_jax.evaluation.wanted import View, Wanted

Kind = Literal['trained', 'init', 'pixels']
SplitName = Literal['train', 'test']
SPLITS: tuple[SplitName, ...] = ('train', 'test')

# Pooled features are extracted of this many last blocks at once: the most that
# a probe asks for, so that the images are read once for all of them.
_LAST = 4


@dataclasses.dataclass
class Survey:
  """What is known of a split's records once they were read.

  Attributes:
    records: `(n,)` numbers of the readable ones.
    labels: label name -> `(n,)` int32.
    bad: names of the broken ones, and why.
  """

  records: np.ndarray
  labels: dict[str, np.ndarray]
  bad: list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Images:
  """The images of an evaluation, the same for all its contexts.

  Attributes:
    train: what probes are fitted on.
    test: what they are measured on.
    labels: names of those to predict.
    surveys: filled by the first features of a split.
  """

  train: labelled.Split
  test: labelled.Split
  labels: tuple[str, ...]
  surveys: dict[str, Survey] = dataclasses.field(default_factory=dict)

  def split(self, name: SplitName) -> labelled.Split:
    """Train or test."""
    return {'train': self.train, 'test': self.test}[name]


class Context:
  """One feature extractor on train and test; see the attributes.

  Rows of all arrays of a split are the same images in the same order: its
  readable records.

  Attributes:
    kind: 'trained', 'init' (never trained), or 'pixels' (no encoder at all).
    encoder: on all devices; None for pixels.
    image_size: side of the images in pixels.
    patch_size: side of a patch in pixels.
    crop: share of an image's shorter side that is looked at.
    seed: of everything that a task draws.
    options: of the task, by name.
    log: tells the user something.
    mesh: all devices, of all processes.
    images: train and test.
  """

  def __init__(
    self,
    kind: Kind,
    model: encoders.Encoder,
    identity: Mapping[str, Any],
    *,
    extractor: Extractor,
    images: Images,
    seed: int,
    log: Callable[[str], None],
    options: Mapping[str, Any] | None = None,
  ):
    """Makes a context.

    Args:
      kind: what `model` is; of 'pixels' only sizes and crop are used.
      model: with parameters on all devices.
      identity: of the encoder, see `extraction.identify`.
      extractor: of features.
      images: to extract from.
      seed: see above.
      log: see above.
      options: see above.
    """
    self.kind = kind
    self.encoder = None if kind == 'pixels' else model
    self.image_size = model.architecture.image_size
    self.patch_size = model.architecture.patch_size
    self.crop = model.crop
    self.seed, self.log = seed, log
    self.options = dict(options or {})
    self.mesh = extractor.mesh
    self.images = images
    self._model, self._identity = model, identity
    self._extractor = extractor

  def with_options(self, options: Mapping[str, Any]) -> 'Context':
    """The same for a task with these options."""
    return Context(
      self.kind,
      self._model,
      self._identity,
      extractor=self._extractor,
      images=self.images,
      seed=self.seed,
      log=self.log,
      options=options,
    )

  @property
  def local_mesh(self) -> jax.sharding.Mesh:
    """This process's devices, for heads: every process trains the same ones."""
    return jax.sharding.Mesh(np.array(jax.local_devices()), ('data',))

  @property
  def grid(self) -> int:
    """Patches per side."""
    return self.image_size // self.patch_size

  def pooled(
    self,
    split: SplitName,
    view: View | None = None,
    *,
    whole: bool = False,
  ) -> np.ndarray:
    """Features averaged over patches, after the final norm.

    Args:
      split: whose images.
      view: an augmented copy; None: centre crops.
      whole: of the whole image, squeezed into a square, and not of its centre:
        for masks and boxes, of which nothing may be cut off.

    Returns:
      `(n, L, D)` float32, mapped from disk: the last four blocks, or all where
      there are fewer, the last one last. Pixels count as one block.
    """
    depth = 1
    if self.encoder is not None:
      depth = self.encoder.architecture.size.depth
    layers = tuple(range(-min(_LAST, depth), 0))
    return self._features(split, Wanted(layers, True, view, whole)).rows

  def corrupted(self, corruption: corruptions.Corruption) -> np.ndarray:
    """Pooled features `(n, D)` of the last layer, of corrupted test images."""
    wanted = Wanted((-1,), True, corruption=corruption)
    return self._features('test', wanted).rows[:, -1]

  def tokens(self, split: SplitName, *, whole: bool = False) -> np.ndarray:
    """Features of every patch, of the last layer; arguments as of `pooled`.

    Returns:
      `(n, N, D)` float32, mapped from disk, row by row of patches. Of pixels
      D = 3 * patch_size ** 2.
    """
    wanted = Wanted((-1,), False, whole=whole)
    return self._features(split, wanted).rows[:, 0]

  def labels(self, split: SplitName) -> dict[str, np.ndarray]:
    """Label name -> `(n,)` int32, of the labels to predict.

    Raises:
      UserError: in train a label has one class only.
    """
    labels = self._survey(split).labels
    return {name: labels[name] for name in self.images.labels}

  def require_labels(self) -> None:
    """Raises a UserError where there are none to predict."""
    if not self.images.labels:
      raise errors.UserError(
        f'{self.images.train.source.name} has no labels: expected one of the '
        'tasks segment, detect, count, distance'
      )

  def records(self, split: SplitName) -> np.ndarray:
    """`(n,)` record numbers of the images, for `images.split(...).source`."""
    return self._survey(split).records

  def _survey(self, split: SplitName) -> Survey:
    if split not in self.images.surveys:
      self.pooled(split)
    return self.images.surveys[split]

  def _features(self, split: SplitName, wanted: Wanted) -> Features:
    chosen = self.images.split(split)
    if self.encoder is None:
      found = self._extractor.pixel_features(
        self.image_size, self._model.crop, self.patch_size, chosen, wanted
      )
    else:
      found = self._extractor.encoder_features(
        self.encoder, self._identity, chosen, wanted, self.kind
      )
    self._note(split, found)
    return found

  def _note(self, split: SplitName, found: Features) -> None:
    known = self.images.surveys.get(split)
    if known is not None:
      if not np.array_equal(known.records, found.records):
        raise errors.DataError(
          f'{self.images.split(split).source.name}: records that could be '
          'read before cannot be read now, or the other way round'
        )
      return
    self.images.surveys[split] = Survey(
      found.records, dict(found.labels), found.bad
    )
    for name in self.images.labels if split == 'train' else ():
      classes = np.unique(found.labels[name])
      if len(classes) < 2:
        raise errors.UserError(
          f'the training images have one class of {name!r} only; expected at '
          'least two (more images with --max-train?)'
        )
