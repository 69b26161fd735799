"""The images that pictures are made of: a few to be drawn, more to compare."""

import concurrent.futures
import dataclasses
import difflib
import functools
import os
import sys

import numpy as np

from ijepa_jax import errors, extract
from ijepa_jax.data import scenes, transforms
from ijepa_jax.metrics import counting

SCENES = 'scenes'
# Of each picture that shows whole images.
DRAWN = 6
# With fewer there is nothing to compare with.
_LEAST = 2


@dataclasses.dataclass(frozen=True)
class Images:
  """Images of one size; the first ones are drawn, the others compared with.

  Attributes:
    names: of each.
    pixels: `(n, S, S, 3)` uint8.
    labels: label name to the class of each, -1 for none, `(n,)`.
    classes: label name to the names of its classes.
    drawn: how many are drawn.
  """

  names: list[str]
  pixels: np.ndarray
  labels: dict[str, np.ndarray]
  classes: dict[str, tuple[str, ...]]
  drawn: int

  def __len__(self) -> int:
    return len(self.names)


def load(
  source: str,
  count: int,
  image: str | None,
  transform: transforms.EvalTransform,
) -> Images:
  """Loads some of the images of a folder, or draws scenes.

  Of a folder, images at equal distances in its sorted list are taken, so that
  all sub-folders are there.

  Args:
    source: `'scenes'`, or a folder.
    count: images to load, at most.
    image: the name of one that must be drawn, as the first.
    transform: to squares of one size.

  Raises:
    UserError: no such folder or image, this one cannot be read, or less than 2
      can.
  """
  if count < _LEAST:
    raise errors.UserError(f'--count={count}: expected at least {_LEAST}')
  if source == SCENES:
    return _draw_scenes(count, image, transform.image_size)
  return _load_folder(source, count, image, transform)


def _draw_scenes(count: int, image: str | None, side: int) -> Images:
  drawn = scenes.ScenesSource('test', side)
  numbers = list(range(count))
  if image is not None:
    if not image.isascii() or not image.isdecimal():
      raise errors.UserError(f'--image={image}: expected the number of a scene')
    numbers = _first(numbers, int(image) % len(drawn))
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    examples = list(pool.map(drawn.__getitem__, numbers))
  return Images(
    names=[str(number) for number in numbers],
    pixels=np.stack([example['image'] for example in examples]),
    labels={
      name: np.array([example['labels'][name] for example in examples])
      for name in drawn.labels
    },
    classes=dict(scenes.CLASS_NAMES),
    drawn=_to_draw(count),
  )


def _load_folder(
  source: str,
  count: int,
  image: str | None,
  transform: transforms.EvalTransform,
) -> Images:
  found = extract.find_images(source)
  total = len(found.index)
  numbers = _spread(total, min(count, total))
  # Those to be drawn, in front, are spread over all again.
  drawn = [numbers[k] for k in _spread(len(numbers), min(DRAWN, len(numbers)))]
  numbers = drawn + [number for number in numbers if number not in drawn]
  if image is not None:
    numbers = _first(numbers, _find(found, image))
  read = functools.partial(extract.read_image, found.index, transform)
  results = []
  with (
    concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    counting.Counter('reading', len(numbers), 'images') as counter,
  ):
    for result in pool.map(read, numbers):
      results.append(result)
      counter.add(1)
  bad = [k for k, result in enumerate(results) if isinstance(result, str)]
  if image is not None and 0 in bad:
    raise errors.UserError(f'--image={image}: cannot be read: {results[0]}')
  for k in bad:
    print(
      f'{found.name(numbers[k])} cannot be read: {results[k]}', file=sys.stderr
    )
  good = [k for k in range(len(numbers)) if k not in bad]
  if len(good) < _LEAST:
    raise errors.UserError(
      f'--images: {len(good)} of {len(numbers)} images in {source} can be '
      f'read, expected at least {_LEAST}'
    )
  chosen = [numbers[k] for k in good]
  labels, classes = {}, {}
  of_each = np.bincount(found.labels[chosen] + 1)[1:]  # -1 is none
  # Where no class has two images, nothing can lie by others of its class.
  if of_each.max(initial=0) > 1:
    labels['class'] = found.labels[chosen]
    classes['class'] = tuple(found.classes)
  return Images(
    names=[found.name(number) for number in chosen],
    pixels=np.stack([results[k] for k in good]),
    labels=labels,
    classes=classes,
    drawn=_to_draw(len(good)),
  )


def _to_draw(count: int) -> int:
  """How many to draw: of few images, some are left to compare with."""
  return min(DRAWN, (count + 1) // 2)


def _spread(total: int, count: int) -> list[int]:
  """`count` of the numbers below `total`, at equal distances."""
  return [(2 * k + 1) * total // (2 * count) for k in range(count)]


def _first(numbers: list[int], number: int) -> list[int]:
  """The same numbers with one of them, or one more, in front."""
  rest = [other for other in numbers if other != number]
  return [number, *rest][: max(len(numbers), 1)]


def _find(found: extract.Images, name: str) -> int:
  """The number of the image with this path, or the end of one.

  Raises:
    UserError: there is none, or more than one.
  """
  names = [found.name(number) for number in range(len(found.index))]
  same = [
    number
    for number, other in enumerate(names)
    if other == name or other.endswith(f'/{name}')
  ]
  if len(same) == 1:
    return same[0]
  if same:
    raise errors.UserError(
      f'--image={name}: {names[same[0]]} and {names[same[1]]} are called so, '
      'expected the whole path below --images'
    )
  near = difflib.get_close_matches(name, names, n=1, cutoff=0)
  raise errors.UserError(
    f'--image={name}: not below --images; nearest: {near[0]}'
  )
