"""Features of a split: read, encoded on all devices, streamed to disk, once."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from ijepa_jax import encoder as encoders
from ijepa_jax import errors, rows, sharding
from ijepa_jax.data import threads
from ijepa_jax.evaluation import labelled, online
from ijepa_jax.evaluation import wanted as wanteds
from ijepa_jax.evaluation.feature_store import Features, Store
from ijepa_jax.evaluation.wanted import Wanted
from ijepa_jax.metrics import counting
from ijepa_jax.models import vit

# A few broken files are told by name.
_NAMED = 5


@dataclasses.dataclass(frozen=True)
class Reading:
  """How a record becomes an array that is sent to the devices.

  Attributes:
    plain: what is done without augmentation.
    shape: of the array.
    dtype: of the array.
    finish: makes it of pixels `(S, S, 3)` uint8.
  """

  plain: wanteds.Plain
  shape: tuple[int, ...]
  dtype: Any
  finish: Callable[[np.ndarray], np.ndarray]


class Extractor:
  """Extracts features of splits, or finds them in the store."""

  def __init__(
    self,
    mesh: jax.sharding.Mesh,
    batch_size: int,
    store: Store,
    log: Callable[[str], None],
  ):
    """Makes an extractor.

    Args:
      mesh: the devices, each of which gets the whole encoder.
      batch_size: images per device and step.
      store: where features are kept.
      log: told what is reused and what is broken.
    """
    self.mesh, self._store, self._log = mesh, store, log
    self._found: dict[str, Features] = {}
    self._compiled: dict[Any, Callable[..., jax.Array]] = {}
    self._shares = rows.Shares(mesh, batch_size * mesh.devices.size)

  def encoder_features(
    self,
    encoder: encoders.Encoder,
    identity: Mapping[str, Any],
    split: labelled.Split,
    wanted: Wanted,
    name: str,
  ) -> Features:
    """Features of an encoder.

    Args:
      encoder: its parameters are on all devices.
      identity: what tells it from every other encoder, see `identify`.
      split: the records.
      wanted: which features.
      name: of the encoder, for people.

    Returns:
      Rows `(n, L, D)` pooled, `(n, L, N, D)` else.

    Raises:
      DataError: no record can be read.
    """
    side = encoder.architecture.image_size
    plain = wanteds.plain_transform(side, encoder.crop, wanted)
    reading = Reading(plain, (side, side, 3), np.uint8, lambda image: image)
    encode = self._compile(
      encoders.features, layers=wanted.layers, pool=wanted.pool
    )
    return self._features(
      identity,
      split,
      wanted,
      reading,
      functools.partial(encode, encoder),
      name,
    )

  def _compile(
    self, function: Callable[..., jax.Array], **static: Any
  ) -> Callable[..., jax.Array]:
    """`function` with these arguments, compiled once for all splits."""
    key = function, tuple(static.items())
    if key not in self._compiled:
      self._compiled[key] = jax.jit(
        functools.partial(function, **static),
        out_shardings=sharding.replicated(self.mesh),
      )
    return self._compiled[key]

  def pixel_features(
    self,
    side: int,
    crop: float,
    patch_size: int,
    split: labelled.Split,
    wanted: Wanted,
  ) -> Features:
    """Raw pixels of what an encoder would see, in 0..1.

    Args:
      side: of the image in pixels.
      crop: as of `EvalTransform`.
      patch_size: for patches.
      split: the records.
      wanted: its layers say nothing here.

    Returns:
      Rows `(n, 1, P * P * 3)` pooled, as of `online.as_vectors`, or the
      pixels of each patch, `(n, 1, N, patch_size ** 2 * 3)`.
    """
    plain = wanteds.plain_transform(side, crop, wanted)
    if wanted.pool:
      small = min(side, online.PIXEL_SIDE)
      reading = Reading(
        plain,
        (1, 3 * small**2),
        np.float32,
        lambda image: online.as_vectors(image[None]),
      )
      compute = None
    else:
      reading = Reading(plain, (side, side, 3), np.uint8, lambda image: image)
      compute = self._compile(_patches, patch_size=patch_size)
    return self._features(
      {'pixels': patch_size},
      split,
      dataclasses.replace(wanted, layers=(-1,)),
      reading,
      compute,
      'pixels',
    )

  def _features(
    self,
    identity: Mapping[str, Any],
    split: labelled.Split,
    wanted: Wanted,
    reading: Reading,
    compute: Callable[[jax.Array], jax.Array] | None,
    name: str,
  ) -> Features:
    made_of = {
      'of': identity,
      'plain': dataclasses.asdict(reading.plain),
      'data': split.fingerprint,
      'wanted': wanted.describe(),
    }
    what = f'{name}, {split.name}' + ('' if wanted.pool else ', patches')
    if wanted.view is not None:
      what += f', view {wanted.view.number + 1}'
    if wanted.corruption is not None:
      what += f', {wanted.corruption.name} {wanted.corruption.severity}'
    key = json.dumps(made_of, sort_keys=True)
    if key in self._found:
      return self._found[key]
    found = self._store.find(made_of)
    if _everywhere(found is not None):
      self._log(f'{what}: features of an earlier run are used again')
    else:
      self._extract(made_of, split, wanted, reading, compute, what)
      found = self._store.find(made_of)
    assert found is not None
    self._found[key] = found
    return found

  def _extract(
    self,
    made_of: Mapping[str, Any],
    split: labelled.Split,
    wanted: Wanted,
    reading: Reading,
    compute: Callable[[jax.Array], jax.Array] | None,
    what: str,
  ) -> None:
    shares, count = self._shares, len(split)
    mine = shares.mine(count)
    names = list(split.source.labels)
    good = np.zeros(len(mine), np.int32)
    labels = np.zeros((len(mine), len(names)), np.int32)
    reasons: dict[int, str] = {}
    read = functools.partial(wanteds.read, split.source, reading.plain, wanted)

    def images() -> Iterator[np.ndarray]:
      blank = np.zeros(reading.shape, reading.dtype)
      ahead = 2 * len(rows.held(self.mesh, shares.batch_size))
      found = threads.in_threads(read, split.records[mine], ahead)
      for row, result in enumerate(found):
        if isinstance(result, str):
          reasons[int(mine[row])] = result
          yield blank
          continue
        image, label = result
        good[row] = 1
        labels[row] = [label[name] for name in names]
        yield reading.finish(image)

    with (
      self._store.writing(made_of) as writer,
      counting.Counter(
        what, count, 'images', enabled=jax.process_index() == 0
      ) as counter,
    ):
      for block in shares.stream(
        images(), count, reading.shape, reading.dtype, compute
      ):
        writer.add(block)
        counter.add(len(block))
      kept = shares.gather(good, count).astype(bool)
      columns = shares.gather(labels, count)
      everybodys = _of_all_processes(reasons)
      bad = [
        (
          split.source.record_id(int(split.records[row])),
          everybodys[int(row)],
        )
        for row in np.flatnonzero(~kept)
      ]
      self._report(split, bad, count)
      writer.finish(
        kept,
        split.records,
        {name: columns[:, k] for k, name in enumerate(names)},
        bad,
      )

  def _report(
    self, split: labelled.Split, bad: list[tuple[str, str]], count: int
  ) -> None:
    if not bad:
      return
    lines = [f'{name}: {why}' for name, why in bad[:_NAMED]]
    told = '; '.join(lines) + ('; ...' if len(bad) > _NAMED else '')
    if len(bad) == count:
      raise errors.DataError(
        f'none of {count:,} records of {split.source.name} can be read; the '
        f'first: {lines[0]}'
      )
    self._log(f'{len(bad):,} broken of {count:,} records left out: {told}')


def _patches(images: jax.Array, *, patch_size: int) -> jax.Array:
  """uint8 `(B, S, S, 3)` to `(B, 1, N, patch_size ** 2 * 3)`, in 0..1."""
  patches = vit.patchify(images.astype(jnp.float32) / 255, patch_size)
  return patches[:, None]


def identify(encoder: encoders.Encoder) -> dict[str, Any]:
  """What tells an encoder from every other: a hash of its numbers, its shape.

  Of the numbers as they are, so that a converted file is the same encoder.
  """
  digest = hashlib.blake2b(digest_size=16)
  leaves = jax.tree_util.tree_leaves_with_path(encoder.params)
  for path, leaf in sorted(leaves, key=lambda x: sharding.path_name(x[0])):
    digest.update(sharding.path_name(path).encode())
    digest.update(np.ascontiguousarray(leaf).data)
  return {
    'parameters': digest.hexdigest(),
    'architecture': encoder.architecture.to_dict(),
    'dtype': encoder.dtype,
  }


def _everywhere(flag: bool) -> bool:
  """Whether it is so on all processes."""
  if jax.process_count() == 1:
    return flag
  return bool(multihost_utils.process_allgather(np.array(flag)).all())


def _of_all_processes(reasons: dict[int, str]) -> dict[int, str]:
  """What each process says of its rows, put together."""
  if jax.process_count() == 1:
    return reasons
  text = np.frombuffer(json.dumps(list(reasons.items())).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.array(len(text))).tolist()
  padded = np.pad(text, (0, max(sizes) - len(text)))
  parts = multihost_utils.process_allgather(padded)
  return {
    row: why
    for part, size in zip(parts, sizes)
    for row, why in json.loads(part[:size].tobytes())
  }
