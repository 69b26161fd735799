"""The fixed images that a run is judged on."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
import tiny
from PIL import Image

from ijepa_jax import errors, rows, sharding
from ijepa_jax.data import sources
from ijepa_jax.evaluation import heldout


@dataclasses.dataclass
class Pixels:
  """Record k is an image of the grey k, of class `label`, or k by turns."""

  count: int
  names: tuple[str, ...] = ('label',)
  classes: list[str] = dataclasses.field(default_factory=lambda: ['a', 'b'])
  label: int | None = None
  side: int = 16
  name: str = 'pixels'

  @property
  def labels(self):
    return dict.fromkeys(self.names, len(self.classes))

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    image = np.full((self.side, self.side, 3), index, np.uint8)
    label = index % len(self.classes) if self.label is None else self.label
    return {'image': image, 'labels': dict.fromkeys(self.names, label)}

  def record_id(self, index):
    return str(index)


def load(monkeypatch, train, test=None, **changes):
  """The two sets; `test` stands for what `eval.split` names."""
  monkeypatch.setattr(sources, 'open_source', lambda *_, **__: test)
  config = tiny.config(eval__split=None if test is None else 'test', **changes)
  mesh = sharding.make_mesh(config)
  shares = rows.Shares(mesh, 8 * mesh.devices.size)
  return heldout.load_sets(config, train, shares)


@pytest.mark.parametrize(
  ('test', 'message'),
  [
    (
      Pixels(9, classes=['a', 'c']),
      "^eval.split: pixels and .* 'b' in one of them alone",
    ),
    (Pixels(9, names=('hue',)), 'the labels label and hue: expected the same'),
    (Pixels(9, names=()), 'the labels label and none: expected the same'),
    (
      Pixels(9, classes=['a', 'b', 'c'], label=-1, name='hidden'),
      "^eval.split='test': hidden has no labels; expected another split, or "
      'eval.every=0',
    ),
  ],
)
def test_a_split_that_says_nothing_is_refused(monkeypatch, test, message):
  train = Pixels(9, classes=['a', 'b', 'c'])
  with pytest.raises(errors.UserError, match=message) as caught:
    load(monkeypatch, train, test)
  assert '\n' not in str(caught.value)


def test_without_labels_there_is_still_health_to_measure(monkeypatch):
  _, test = load(monkeypatch, Pixels(9, names=()), Pixels(7, names=()))
  assert (test.total, dict(test.labels)) == (7, {})


def test_every_image_is_there_once_with_its_label(monkeypatch):
  sets = load(monkeypatch, Pixels(40))
  assert [each.total for each in sets] == [27, 13]  # 2 to 1, as asked for
  seen = [image.min() for each in sets for image in each.images]
  assert sorted(seen) == list(range(40))
  labels = np.concatenate([each.labels['label'] for each in sets])
  assert labels.tolist() == [k % 2 for k in seen]


@pytest.mark.parametrize('count', [1, 2, 3])
def test_too_few_images_are_one_line(monkeypatch, count):
  message = 'expected 2 of each at least; more images, or eval.every=0'
  with pytest.raises(errors.UserError, match=message) as caught:
    load(monkeypatch, Pixels(count))
  assert '\n' not in str(caught.value)
  with pytest.raises(errors.UserError, match=message):
    load(monkeypatch, Pixels(9), Pixels(1))


def test_four_images_are_enough(monkeypatch):
  train, test = load(
    monkeypatch, Pixels(4), eval__train_examples=5000, eval__test_examples=2
  )
  assert (train.total, test.total) == (2, 2)


def test_images_are_in_memory_once(monkeypatch):
  monkeypatch.setattr(heldout, '_AHEAD', 2)
  load(monkeypatch, Pixels(8))  # imports
  tracemalloc.start()
  try:
    train, _ = load(
      monkeypatch, Pixels(256, side=64), Pixels(2), model__image_size=64,
      eval__train_examples=256,
    )  # fmt: skip
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert train.images.nbytes == 256 * 64 * 64 * 3
  assert peak < 1.5 * train.images.nbytes


def test_a_folder_of_two_images_is_one_line(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  folder = tmp_path / 'images'
  folder.mkdir()
  for name in ('a', 'b'):
    Image.new('RGB', (16, 16)).save(folder / f'{name}.png')
  done = tiny.run(
    tmp_path / 'run', data__source='folder', data__path=folder,
    batch_size=2, eval__every=2, eval__split=None,
  )  # fmt: skip
  assert done.returncode == 2, done.stderr
  assert 'expected 2 of each at least' in done.stderr.splitlines()[-1]
