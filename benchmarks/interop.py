"""Every format in both directions against its peer: a table of differences.

  python benchmarks/interop.py --json=benchmarks/results/interop.json

For each published size, with random weights of one or two blocks, and each
format of `python -m ijepa_jax.convert`:

- to peer: weights of ours are converted and the peer loads them; the largest
  difference of its features to those of our encoder.
- from peer: `load_encoder` reads what the peer has saved; the largest
  difference of our features to the peer's.
- same tensors: those that are the same bit for bit after ours -> format ->
  ours, and after peer's -> ours -> peer's.

The peers are the real transformers and timm; for the reference a plain PyTorch
model with its names, which a test holds to numbers of the authors' code; for
our own formats the bare libraries Orbax and safetensors. transformers
interpolates positions for images of other sides itself. For the others our
weights are converted with `--image-size`, from where there is no way back.

Needs what `make test-interop` installs. Exit code 1: a difference is larger
than the tolerance, or a tensor has changed.
"""

import argparse
import dataclasses
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import interop_peers
import jax
import jax.numpy as jnp
import numpy as np
from interop_peers import PEERS, Peer
from interop_weights import CLASSES, images, random
from parity_report import difference, different_bits

from ijepa_jax import checkpoint, encoder
from ijepa_jax.interop import positions, reading, weights, writing
from ijepa_jax.interop.weights import Weights

TOLERANCE = 2e-5  # absolute; features after the last norm are about 1
# Images: those of the published models, and a rectangle.
_IMAGES = ((224, 224), (448, 448), (224, 336))
_SIDES = {'huge, 16': 448}  # what the weights are for, where it is not 224


@dataclasses.dataclass(frozen=True)
class Row:
  """Differences of one size in one format at one resolution.

  Attributes:
    size: a key of `CLASSES`.
    format: of `convert`.
    image: height and width in pixels.
    to_peer: largest difference of features.
    from_peer: the same in the other direction, if there is one.
    tensors: how many went there and back.
    changed: how many of these are not the same bit for bit.
  """

  size: str
  format: str
  image: str
  to_peer: float
  from_peer: float | None = None
  tensors: int = 0
  changed: int = 0

  @property
  def passed(self) -> bool:
    """Whether all is within the tolerance, which NaN never is."""
    differences = (self.to_peer, self.from_peer)
    within = all(x <= TOLERANCE for x in differences if x is not None)
    return within and not self.changed

  def __str__(self) -> str:
    same = f'{self.tensors - self.changed} of {self.tensors}'
    return _line(
      self.size,
      self.format,
      self.image,
      f'{self.to_peer:.1e}',
      '' if self.from_peer is None else f'{self.from_peer:.1e}',
      same if self.tensors else '',
      'pass' if self.passed else 'FAIL',
    )


def _line(*cells: str) -> str:
  return '{:<10} {:<12} {:<8} {:>8} {:>10} {:>13}  {}'.format(*cells).rstrip()


def compare(size: str, folder: str) -> Iterator[Row]:
  """Compares one of `CLASSES` in all formats; `folder` is filled."""
  side = _SIDES.get(size, 224)
  architecture = CLASSES[size].at(side)
  params = random(weights.shapes(architecture.encoder()), seed=0)
  held = Weights('memory', 'ours', architecture, params, params)
  run = os.path.join(folder, 'run')
  writing.write(held, run, 'orbax')
  ours = encoder.load_encoder(run)
  features = {
    image: np.asarray(ours(jnp.asarray(images(1, *image)))) for image in _IMAGES
  }
  for format, peer in PEERS.items():
    pair = _Pair(format, peer, held, os.path.join(folder, format))
    for image, mine in features.items():
      x, name = images(1, *image), '{}x{}'.format(*image)
      if image == (side, side):
        both, counts = pair.differences(x, mine), pair.count_changed()
        yield Row(size, format, name, *both, *counts)
      elif peer.other_sides:
        yield Row(size, format, name, *pair.differences(x, mine))
      elif image[0] == image[1]:
        theirs = peer.features(pair.resized(image[0]), x)
        yield Row(size, format, name, difference(theirs, mine))


class _Pair:
  """Weights of ours and weights of a peer, both on both sides."""

  def __init__(self, format: str, peer: Peer, held: Weights, path: str):
    """Makes the peer's weights, and takes both to the other side.

    Args:
      format: between them.
      peer: the other program.
      held: ours.
      path: what the names of all files begin with.
    """
    self._format, self._peer, self._held, self._path = format, peer, held, path
    self._exported = self._write(held, 'exported')
    self._ours_there = peer.load(self._exported, held.architecture)
    self._theirs = peer.make(held.architecture)
    self._saved = f'{path}.saved'
    peer.save(self._theirs, self._saved)
    self._theirs_here = encoder.load_encoder(self._saved)

  def differences(
    self, images: np.ndarray, ours: np.ndarray
  ) -> tuple[float, float]:
    """To the peer, where `ours` are our features, and from the peer."""
    features = self._peer.features
    return (
      difference(features(self._ours_there, images), ours),
      difference(
        self._theirs_here(jnp.asarray(images)), features(self._theirs, images)
      ),
    )

  def count_changed(self) -> tuple[int, int]:
    """How many tensors there are, and how many do not come back the same."""
    returned = self._write(reading.open_weights(self._saved), 'returned')
    theirs = self._peer.load(returned, self._held.architecture)
    pairs = (
      (reading.open_weights(self._exported).target, self._held.target),
      (self._peer.tensors(theirs), self._peer.tensors(self._theirs)),
    )
    count = sum(len(before) for _, before in pairs)
    return count, int(sum(different_bits(*pair) for pair in pairs))

  def resized(self, side: int) -> Any:
    """The peer's model of our weights, converted to another side."""
    held = writing.resized(self._held, side, positions.square)
    return self._peer.load(self._write(held, str(side)), held.architecture)

  def _write(self, held: Weights, name: str) -> str:
    path = f'{self._path}.{name}'
    writing.write(held, path, self._format)
    return path


def worst(format: str, rows: Sequence[Row]) -> Row:
  """The largest numbers of a format, and all of its tensors."""
  rows = [row for row in rows if row.format == format]
  return Row(
    'worst of',
    format,
    'all',
    float(np.max([row.to_peer for row in rows])),  # NaN if there is one
    float(np.max([r.from_peer for r in rows if r.from_peer is not None])),
    sum(row.tensors for row in rows),
    sum(row.changed for row in rows),
  )


def main(arguments: Sequence[str] | None = None) -> None:
  """Prints the table, and exits with its code."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--json', help='also write the results here')
  args = parser.parse_args(arguments)
  interop_peers.quiet()
  headings = 'size', 'format', 'image', 'to peer', 'from peer', 'same tensors'
  print(_line(*headings, ''))
  rows: list[Row] = []
  for size in CLASSES:
    with tempfile.TemporaryDirectory() as folder:
      for row in compare(size, folder):
        rows.append(row)
        print(row, flush=True)
  for format in PEERS:
    print(worst(format, rows))
  failed = [row for row in rows if not row.passed]
  print(f'{len(rows)} rows, {len(failed)} failed')
  if args.json:
    peers = ('torch', 'transformers', 'timm')
    result = {
      'command': 'python benchmarks/interop.py',
      'cores': os.cpu_count(),
      'machine': platform.machine(),
      'versions': checkpoint.versions()
      | {name: metadata.version(name) for name in peers},
      'tolerance': TOLERANCE,
      'rows': [dataclasses.asdict(row) for row in rows],
    }
    with open(args.json, 'w', encoding='utf-8') as file:
      json.dump(result, file, indent=2)
      file.write('\n')
  sys.exit(bool(failed))


if __name__ == '__main__':
  # The tolerance is of float32 on a CPU.
  if 'JAX_PLATFORMS' not in os.environ:
    jax.config.update('jax_platforms', 'cpu')
  main()
