"""mIoU against scikit-learn, AP against values worked out by hand."""

import jax
import numpy as np
import pytest
from sklearn import metrics

from ijepa_jax.data import dense, scenes
from ijepa_jax.evaluation.dense import (
  average_precision,
  detection,
  miou,
  resizing,
)

RNG = np.random.default_rng(0)


def test_miou_is_scikit_learns_without_ignored_pixels():
  truth = RNG.integers(0, 4, (6, 9, 7)).astype(np.uint8)
  guess = RNG.integers(0, 3, truth.shape)
  truth[RNG.random(truth.shape) < 0.2] = dense.IGNORED
  counts = miou.stack([miou.count(t, g, 6) for t, g in zip(truth, guess)])
  known = truth != dense.IGNORED
  expected = metrics.jaccard_score(
    truth[known], guess[known], labels=range(4), average=None
  )
  found = miou.by_class(counts)
  np.testing.assert_allclose(found[:4], expected, rtol=1e-12)
  assert np.isnan(found[4:]).all()  # neither there nor guessed
  assert miou.mean(counts) == pytest.approx(expected.mean())
  table = metrics.confusion_matrix(truth[known], guess[known], labels=range(6))
  np.testing.assert_array_equal(counts.both.sum(0), np.diag(table))
  np.testing.assert_array_equal(counts.truth.sum(0), table.sum(1))
  np.testing.assert_array_equal(counts.guess.sum(0), table.sum(0))


def test_perfect_and_worst_miou():
  truth = RNG.integers(0, 3, (2, 5, 5)).astype(np.uint8)
  perfect = miou.stack([miou.count(t, t, 3) for t in truth])
  worst = miou.stack([miou.count(t, (t + 1) % 3, 3) for t in truth])
  assert miou.mean(perfect) == 1
  assert miou.mean(worst) == 0


def test_upsampling_is_bilinear():
  logits = RNG.standard_normal((4, 4, 3)).astype(np.float32)
  expected = jax.image.resize(logits, (12, 10, 3), 'bilinear')
  np.testing.assert_allclose(
    resizing.upsample(logits, 12, 10), expected, atol=1e-5
  )
  np.testing.assert_array_equal(resizing.upsample(logits, 4, 4), logits)
  assert resizing.upsample(logits[:1, :1], 5, 3).shape == (5, 3, 3)


def test_nearest_takes_the_pixel_at_the_centre():
  assert resizing.nearest(9, 3).tolist() == [1, 4, 7]
  assert resizing.nearest(2, 4).tolist() == [0, 0, 1, 1]


# Two images of one class with three objects; unit squares of a 10 x 10 image.


def boxes(*corners, crowd=False):
  corners = np.array(corners, np.float32).reshape(-1, 4) / 10
  count = len(corners)
  return dense.Boxes(
    corners, np.zeros(count, np.int32), np.full(count, crowd, bool)
  )


def found(*rows):
  """Detections from rows (x0, y0, x1, y1, score)."""
  rows = np.array(rows, np.float64).reshape(-1, 5)
  return average_precision.Detections(
    rows[:, :4] / 10, np.zeros(len(rows), int), rows[:, 4]
  )


TRUTH = [boxes((0, 0, 4, 4), (5, 5, 9, 9)), boxes((2, 2, 6, 6))]


def ap(detections, truth=TRUTH, rows=None):
  sizes = [(10, 10)] * len(truth)
  evaluation = average_precision.Evaluation(truth, detections, sizes, 1)
  return evaluation.average_precision(rows)


def test_perfect_detections_have_ap_1():
  perfect = [
    found((0, 0, 4, 4, 0.9), (5, 5, 9, 9, 0.8)),
    found((2, 2, 6, 6, 0.7)),
  ]
  assert ap(perfect) == {'AP': 1, 'AP50': 1, 'AP75': 1}


def test_ap_of_hand_made_detections():
  # By score: a hit, a miss, a hit with IoU 9.9 / 16 = 0.62; one object is not
  # found. Precision is 1 up to recall 1/3, 2/3 up to 2/3, and 0 beyond: of
  # COCO's 101 recalls 34 have 1 and 33 have 2/3, at the thresholds 0.5, 0.55
  # and 0.6; at the other seven, 34 have 1.
  detections = [
    found((0, 0, 4, 4, 0.9), (0, 6, 1, 7, 0.8)),
    found((2, 2, 5, 5.3, 0.5)),
  ]
  low, high = (34 + 33 * 2 / 3) / 101, 34 / 101
  assert ap(detections) == {
    'AP50': pytest.approx(low),
    'AP75': pytest.approx(high),
    'AP': pytest.approx((3 * low + 7 * high) / 10),
  }


def test_a_second_detection_of_an_object_is_a_miss():
  twice = [found((0, 0, 4, 4, 0.9), (0, 0, 4, 4, 0.8)), found()]
  # 1 up to recall 1/3, then nothing.
  assert ap(twice)['AP50'] == pytest.approx(34 / 101)


def test_detections_of_a_crowd_are_neither_hit_nor_miss():
  truth = [boxes((0, 0, 4, 4)), boxes((2, 2, 6, 6), crowd=True)]
  inside = [found((0, 0, 4, 4, 0.5)), found((2, 2, 4, 4, 0.9))]
  assert ap(inside, truth)['AP'] == pytest.approx(1)


def test_nothing_found_is_0_and_rows_may_repeat():
  nothing = [found(), found()]
  assert ap(nothing) == {'AP': 0, 'AP50': 0, 'AP75': 0}
  half = [found((0, 0, 4, 4, 0.9), (5, 5, 9, 9, 0.8)), found()]
  assert ap(half, rows=np.array([0, 0]))['AP'] == 1
  assert ap(half, rows=np.array([1, 1]))['AP'] == 0
  assert ap(half, rows=np.array([1, 0])) == ap(half)


def test_true_outputs_decode_to_the_objects():
  source = scenes.ScenesSource('train', 64)
  truth = [source.boxes(index) for index in range(40)]
  wanted = detection.targets(truth, 8, len(source.box_classes))
  assert wanted.known.sum() == sum(len(one.classes) for one in truth)
  heat = np.where(wanted.heat == 1, 20, -20)
  outputs = np.concatenate([heat, wanted.box], -1)
  decoded = [detection.decode(one) for one in outputs]
  sizes = [source.size(index) for index in range(40)]
  evaluation = average_precision.Evaluation(truth, decoded, sizes, 5)
  assert evaluation.average_precision()['AP'] == 1
  assert detection.loss(outputs, wanted) < 1e-3


def test_the_loss_falls_towards_the_truth():
  wanted = detection.targets([boxes((0, 0, 4, 4))], 4, 1)
  outputs = RNG.standard_normal((1, 4, 4, 5)).astype(np.float32)
  loss, gradient = jax.value_and_grad(detection.loss)(outputs, wanted)
  assert detection.loss(outputs - 0.01 * gradient, wanted) < loss


def test_crowds_are_not_trained_on_and_small_boxes_win():
  crowd = detection.targets([boxes((0, 0, 4, 4), crowd=True)], 4, 1)
  assert not crowd.heat.any()
  assert not crowd.known.any()
  both = detection.targets([boxes((1, 1, 2, 2), (0, 0, 3, 3))], 2, 1)
  np.testing.assert_allclose(
    both.box[0, 0, 0, 2:], np.log([0.1, 0.1]), rtol=1e-5
  )
