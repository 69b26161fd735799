"""Weights of every kind, small enough to write and read in every format."""

import contextlib
import dataclasses
import fractions
import io
import os
import pathlib
from typing import Any

import jax
import numpy as np
from flax import nnx
from interop_weights import random

from ijepa_jax import convert
from ijepa_jax.interop import names, weights, writing
from ijepa_jax.interop.weights import Architecture, Moments, Parameters, Weights
from ijepa_jax.models import sizes, vit

# An odd MLP ratio; heads that the width does not tell.
SIZE = sizes.Size(44, 3, 2, fractions.Fraction(48, 11))
ARCHITECTURE = Architecture(SIZE, patch_size=4, image_size=12)
PREDICTOR = sizes.Size(24, 2, 2)


def single(
  architecture: Architecture = ARCHITECTURE, seed: int = 0, **changes: Any
) -> Weights:
  """A single encoder."""
  encoder = random(weights.shapes(architecture.encoder()), seed)
  return Weights('memory', 'ours', architecture, encoder, encoder, **changes)


def untrained(architecture: Architecture, seed: int = 0) -> dict[str, Any]:
  """An encoder's numbers before training: it sees edges and textures."""

  @jax.jit
  def make() -> dict[str, Any]:
    module = vit.Encoder(
      architecture.size,
      patch_size=architecture.patch_size,
      image_size=architecture.image_size,
      init_std=0.1,
      rngs=nnx.Rngs(seed),
    )
    return nnx.to_pure_dict(nnx.state(module))

  return make()


def of_tree(tree: dict[str, Any], architecture: Architecture) -> Weights:
  """A single encoder with these numbers."""
  flat = jax.tree.map(np.asarray, names.flatten(tree))
  encoder = Parameters({k: v.shape for k, v in flat.items()}, flat.__getitem__)
  return Weights('memory', 'ours', architecture, encoder, encoder)


def full(architecture: Architecture = ARCHITECTURE, **changes: Any) -> Weights:
  """Two encoders, a predictor, moments."""
  encoder = weights.shapes(architecture.encoder())
  predictor = weights.shapes(architecture.predictor(PREDICTOR))

  def moment(seed: int) -> dict[str, Parameters]:
    return {
      'encoder': random(encoder, seed).without('pos_embed'),
      'predictor': random(predictor, seed + 1).without('pos_embed'),
    }

  return Weights(
    'memory',
    'ours',
    architecture,
    target=random(encoder, 0),
    context=random(encoder, 1),
    predictor=random(predictor, 2),
    predictor_size=PREDICTOR,
    moments=Moments(7, mean=moment(3), square=moment(5)),
    progress={'step': 7, 'epoch': 2},
    **changes,
  )


def golden_arrays(name: str) -> dict[str, np.ndarray]:
  """The arrays of `golden/NAME.npz`."""
  with np.load(
    pathlib.Path(__file__).parent / 'golden' / f'{name}.npz'
  ) as file:
    return dict(file)


def golden(prefix: str = 'target_encoder') -> Weights:
  """One of the encoders of `golden/model_micro.npz`."""
  tensors = {
    name.removeprefix(f'{prefix}/'): array
    for name, array in golden_arrays('model_micro').items()
    if name.startswith(f'{prefix}/')
  }
  architecture = Architecture(sizes.Size(48, 2, 3), 8, 48)
  held = of_tree(names.tree(names.ENCODER, tensors), architecture)
  return dataclasses.replace(held, format='golden')


def write(held: Weights, path: pathlib.Path, format: str) -> pathlib.Path:
  """Writes and returns `path`."""
  writing.write(held, str(path), format)
  return path


def run(
  src: pathlib.Path, dst: pathlib.Path, *arguments: str
) -> tuple[pathlib.Path, str]:
  """Runs the command; returns DST and what it said on stderr."""
  said = io.StringIO()
  with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
    convert.main([str(src), str(dst), *arguments])
  return dst, said.getvalue()


def tensors_of(held: Weights, table: names.Table) -> dict[str, np.ndarray]:
  """The target encoder as another format's tensors."""
  return dict(
    pair
    for entry in table
    for pair in names.scatter(entry, held.target[entry.ours])
  )


def listing(folder: pathlib.Path) -> set[str]:
  """Everything below `folder`, hidden files too."""
  return {
    os.path.join(where, name)
    for where, folders, files in os.walk(folder)
    for name in folders + files
  }


def assert_same(ours: Any, theirs: Any) -> None:
  """Bitwise: values, types, shapes and names."""
  ours, theirs = dict(ours), dict(theirs)
  assert ours.keys() == theirs.keys()

  def same(a: Any, b: Any) -> None:
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)

  jax.tree.map(same, ours, theirs)


def assert_same_weights(ours: Weights, theirs: Weights) -> None:
  """Bitwise, in all that `ours` has."""
  assert theirs.architecture == ours.architecture
  assert_same(theirs.target, ours.target)
  assert_same(theirs.context, ours.context)
  assert (theirs.predictor is None) == (ours.predictor is None)
  assert theirs.predictor_size == ours.predictor_size
  if ours.predictor is not None:
    assert_same(theirs.predictor, ours.predictor)
  assert (theirs.moments is None) == (ours.moments is None)
  if ours.moments is not None:
    assert theirs.moments.count == ours.moments.count
    for moment in ('mean', 'square'):
      a, b = getattr(theirs.moments, moment), getattr(ours.moments, moment)
      assert a.keys() == b.keys()
      for part in b:
        assert_same(a[part], b[part])
