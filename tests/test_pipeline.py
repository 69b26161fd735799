"""Batches do not depend on how many hosts or workers make them."""

import numpy as np
import pytest
import tiny
from absl import flags

from ijepa_jax.data import masks, pipeline, scenes

MASKS = ('context', 'context_length', 'target', 'target_length')
STEPS = 3


def make_dataset(rows=None, **overrides):
  return pipeline.make_dataset(
    tiny.config(**overrides), scenes.ScenesSource('train', 24, 0), rows
  )


@pytest.mark.parametrize('keep', ['first', 'random'])
def test_masks_are_those_of_seed_and_step(keep):
  config = tiny.config(mask__keep=keep, seed=7)
  dataset = make_dataset(mask__keep=keep, seed=7)
  for step in 0, 4:
    drawn = masks.sample_masks(pipeline.mask_spec(config), 7, step, 8)
    for name in MASKS:
      np.testing.assert_array_equal(dataset[step][name], getattr(drawn, name))


@pytest.mark.parametrize('rows', [[0, 1, 2, 3], [4, 5, 6, 7], [3], [0, 1, 6]])
def test_a_process_makes_its_rows_of_the_batch_of_one(rows):
  whole, part = make_dataset(), make_dataset(np.array(rows))
  for step in range(STEPS):
    made = part[step]
    for name, expected in whole[step].items():
      np.testing.assert_array_equal(made[name], expected[rows], err_msg=name)


@pytest.fixture
def parsed_flags():
  """Grain's workers read absl flags, which only a program parses."""
  was_parsed = flags.FLAGS.is_parsed()
  flags.FLAGS.mark_as_parsed()
  yield
  if not was_parsed:
    flags.FLAGS.unparse_flags()


@pytest.mark.usefixtures('parsed_flags')
@pytest.mark.parametrize('workers', [0, 1, 2])
def test_workers_give_the_same_batches_in_order(workers):
  dataset = make_dataset()
  with pipeline.batches(dataset, 1, 1 + STEPS, workers) as batches:
    for step, batch in enumerate(batches, 1):
      assert batch.keys() == dataset[step].keys()
      for name, expected in dataset[step].items():
        np.testing.assert_array_equal(batch[name], expected, err_msg=name)
  assert step == STEPS
