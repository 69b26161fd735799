"""Pictures: they show what they say, and are written whole or not at all."""

import errno
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from ijepa_jax.errors import UserError
from ijepa_jax.metrics import series
from ijepa_jax.visualize import curves, masks
from ijepa_jax.visualize import figure as fig

GRID, PATCH = 4, 8


def make_batch(n=2):
  """A context of 3 patches, and two targets of 4, padded."""
  return {
    'context': np.tile([0, 1, 4, 0, 0, 0], (n, 1)),
    'context_length': np.full(n, 3),
    'target': np.tile([[2, 3, 6, 7, 0], [10, 11, 14, 15, 0]], (n, 1, 1)),
    'target_length': np.full(n, 4),
  }


def make_rows(labels=('label',), steps=1_000):
  rows = []
  for step in range(0, steps + 1, 50):
    row = {'step': step, 'time': 1.7e9 + step}
    if step:
      row |= {'train/loss': 1 / step, 'train/lr': 1e-3, 'train/momentum': 0.99}
    if step % 200 == 0:
      row |= {'health/rankme': 3 + step / 100}
      for label in labels:
        row |= {f'probe/{label}/knn': 0.3, f'probe/{label}/linear': 0.4}
    rows.append(row)
  return rows


def count_pixels(path, color, tolerance=12):
  """Pixels of a picture that have nearly this colour."""
  pixels = np.asarray(Image.open(path).convert('RGB')).astype(int)
  target = np.round(255 * np.array(to_rgb(color)))
  return int((np.abs(pixels - target).max(-1) <= tolerance).sum())


def panel_titles(monkeypatch, path, rows, **kwargs):
  """Titles of the panels that `draw_curves` draws."""
  figures = []
  original = fig.save
  monkeypatch.setattr(
    fig, 'save', lambda f, path: (figures.append(f), original(f, path))
  )
  curves.draw_curves(path, rows, **kwargs)
  return [axis.get_title(loc='left') for axis in figures[0].axes]


class TestMasks:
  def test_every_target_has_its_colour(self, tmp_path):
    images = np.full((2, GRID * PATCH, GRID * PATCH, 3), 90, np.uint8)
    masks.draw_masks(tmp_path / 'm.png', images, make_batch(), PATCH)
    for color in fig.COLORS[:2]:
      assert count_pixels(tmp_path / 'm.png', color) > 100
    assert count_pixels(tmp_path / 'm.png', fig.COLORS[2]) < 20

  def test_only_the_context_stays_visible(self, tmp_path):
    """The image appears whole once, and 3 of its 16 patches once more."""
    red = (250, 10, 10)
    images = np.full((1, GRID * PATCH, GRID * PATCH, 3), red, np.uint8)
    batch = make_batch(1)
    masks.draw_masks(tmp_path / 'm.png', images, batch, PATCH)
    visible = count_pixels(tmp_path / 'm.png', '#fa0a0a', tolerance=2)
    batch['context_length'][:] = 0
    masks.draw_masks(tmp_path / 'm.png', images, batch, PATCH)
    whole = count_pixels(tmp_path / 'm.png', '#fa0a0a', tolerance=2)
    assert visible / whole == pytest.approx(1 + 3 / 16, abs=0.02)

  def test_at_most_six_images(self, tmp_path):
    size = GRID * PATCH
    for n in (6, 20):
      images = np.zeros((n, size, size, 3), np.uint8)
      masks.draw_masks(tmp_path / f'{n}.png', images, make_batch(n), PATCH)
    assert (tmp_path / '6.png').read_bytes() == (
      tmp_path / '20.png'
    ).read_bytes()

  def test_shared_edges_show_both_targets(self, tmp_path):
    batch = make_batch(1)
    batch['target'][:, 1] = batch['target'][:, 0]
    images = np.full((1, GRID * PATCH, GRID * PATCH, 3), 90, np.uint8)
    masks.draw_masks(tmp_path / 'm.png', images, batch, PATCH)
    for color in fig.COLORS[:2]:
      assert count_pixels(tmp_path / 'm.png', color) > 100


def drawn_lines(monkeypatch):
  """A list to which every line is added that is drawn from now on."""
  lines = []
  original = Axes.plot

  def plot(*arguments, **style):
    drawn = original(*arguments, **style)
    lines.extend(drawn)
    return drawn

  monkeypatch.setattr(Axes, 'plot', plot)
  return lines


class TestCurves:
  def test_a_panel_for_every_label(self, tmp_path, monkeypatch):
    labels = ('count', 'shape', 'color', 'position', 'extra')
    titles = panel_titles(monkeypatch, tmp_path / 'c.png', make_rows(labels))
    for label in labels:
      assert f'Probes of "{label}"' in titles
    assert 'Loss' in titles

  def test_a_line_for_every_block(self, tmp_path, monkeypatch):
    rows = make_rows()
    for row in rows:
      row |= {f'rankme_block/{block:02}': block + 1 for block in range(12)}
    lines = drawn_lines(monkeypatch)
    titles = panel_titles(monkeypatch, tmp_path / 'c.png', rows)
    assert {'LiDAR', 'RankMe by block', 'Attention entropy'} <= set(titles)
    values = [set(line.get_ydata()) for line in lines]
    heights = [each.pop() for each in values if len(each) == 1]
    assert set(range(1, 13)) <= set(heights)

  def test_baselines_are_no_labels(self, tmp_path, monkeypatch):
    rows = make_rows()
    rows[0]['pixels/probe/label/linear'] = 0.3
    titles = panel_titles(monkeypatch, tmp_path / 'c.png', rows)
    assert sum('Probes' in title for title in titles) == 1

  def test_baselines_are_drawn(self, tmp_path):
    path = tmp_path / 'c.png'
    curves.draw_curves(path, make_rows())
    without = path.read_bytes()
    curves.draw_curves(path, make_rows(), chance={'label': 0.1})
    with_chance = path.read_bytes()
    curves.draw_curves(path, make_rows(), pixels={'probe/label/knn': 0.2})
    assert len({without, with_chance, path.read_bytes()}) == 3

  @pytest.mark.parametrize(
    'rows',
    [
      [],
      [{'step': 50, 'train/loss': 0.5}],
      [{'step': 50, 'train/loss': math.nan}, {'step': 100, 'train/loss': 0}],
      [{'step': 0, 'probe/label/knn': 0.1, 'probe/label/linear': math.nan}],
    ],
  )
  def test_short_runs_and_gaps(self, tmp_path, monkeypatch, rows):
    lines = drawn_lines(monkeypatch)
    curves.draw_curves(tmp_path / 'c.png', rows)
    assert Image.open(tmp_path / 'c.png').size[0] == 1500
    # A line of one point is nothing; its mark is seen.
    assert {line.get_marker() for line in lines} <= {'o'}
    loss = [x for x in lines if x.axes.get_title(loc='left') == 'Loss']
    assert bool(loss) == any('train/loss' in row for row in rows)

  def test_long_runs_have_no_marks(self, tmp_path, monkeypatch):
    lines = drawn_lines(monkeypatch)
    rows = [{'step': k, 'train/loss': 1.0} for k in range(40)]
    curves.draw_curves(tmp_path / 'c.png', rows)
    assert {line.get_marker() for line in lines} == {''}

  def test_smoothing_keeps_a_straight_line(self):
    values = np.linspace(3, 1, 500)
    np.testing.assert_allclose(series.smooth(values), values)

  def test_smoothing_removes_noise(self):
    noise = np.random.default_rng(0).normal(size=1_000)
    assert series.smooth(noise)[100:-100].std() < 0.4


class TestSave:
  def test_failure_leaves_the_old_picture(self, tmp_path, monkeypatch):
    path = tmp_path / 'c.png'
    path.write_bytes(b'old')

    def fail(self, file, **kwargs):
      file.write(b'half')
      raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(Figure, 'savefig', fail)
    with pytest.raises(UserError, match=r'c\.png: No space'):
      curves.draw_curves(path, [])
    assert path.read_bytes() == b'old'
    assert os.listdir(tmp_path) == ['c.png']

  def test_pyplot_is_not_imported(self):
    """Its global state and its choice of a display belong to the user."""
    code = """
import sys
from ijepa_jax.visualize import curves, masks
assert 'matplotlib.pyplot' not in sys.modules
"""
    subprocess.run([sys.executable, '-c', code], check=True)
