"""The tables between our names and others'."""

import collections

import numpy as np
import pytest
import small_weights

from ijepa_jax.interop import names, weights

ENCODERS = {
  'reference': names.ENCODER,
  'huggingface': names.HUGGINGFACE,
  'huggingface 5': names.HUGGINGFACE_5,
  'flax': names.FLAX_ENCODER,
}
PREDICTORS = {
  'reference predictor': names.PREDICTOR,
  'flax predictor': names.FLAX_PREDICTOR,
}
TABLES = ENCODERS | PREDICTORS


def parameters(table):
  if table in PREDICTORS.values():
    held = small_weights.full().predictor
    return held, small_weights.PREDICTOR.depth
  return small_weights.single().target, small_weights.SIZE.depth


@pytest.fixture(params=TABLES.values(), ids=TABLES)
def table(request):
  return request.param


def test_a_table_lists_every_parameter_once(table):
  held, _ = parameters(table)
  listed = collections.Counter(entry.ours for entry in table)
  assert listed.keys() == held.keys()
  assert set(listed.values()) == {1}


def test_no_two_parameters_share_a_name(table):
  theirs = collections.Counter(
    name
    for entry in table
    for block in range(small_weights.SIZE.depth if entry.stacked else 1)
    for name in entry.names(block)
  )
  assert set(theirs.values()) == {1}


def test_gather_undoes_scatter(table):
  held, depth = parameters(table)
  for entry in table:
    ours = held[entry.ours]
    theirs = dict(names.scatter(entry, ours))
    again = names.gather(entry, depth, theirs.__getitem__)
    np.testing.assert_array_equal(again, ours)
    assert again.dtype == np.float32


def test_scattered_tensors_are_contiguous_and_stand_alone(table):
  held, _ = parameters(table)
  for entry in table:
    for _, tensor in names.scatter(entry, held[entry.ours]):
      assert tensor.flags.c_contiguous


def test_scatter_undoes_gather():
  tensors = small_weights.tensors_of(
    small_weights.single(), names.HUGGINGFACE_5
  )
  for entry in names.HUGGINGFACE_5:
    depth = small_weights.SIZE.depth
    ours = names.gather(entry, depth, tensors.__getitem__)
    for name, tensor in names.scatter(entry, ours):
      np.testing.assert_array_equal(tensor, tensors[name])


def test_order_of_modules_is_block_by_block():
  order = list(names.in_order(names.ENCODER, 2))
  assert order[:4] == [
    'pos_embed',
    'patch_embed.proj.weight',
    'patch_embed.proj.bias',
    'blocks.0.norm1.weight',
  ]
  assert order[15] == 'blocks.1.norm1.weight'
  assert order[-2:] == ['norm.weight', 'norm.bias']
  assert len(order) == len(set(order)) == 29


def test_a_kernel_is_transposed_and_a_patch_reordered():
  tensors = small_weights.tensors_of(small_weights.single(), names.ENCODER)
  ours = small_weights.single().target
  np.testing.assert_array_equal(
    tensors['blocks.1.mlp.fc1.weight'], ours['trunk.blocks.fc1.kernel'][1].T
  )
  patch = tensors['patch_embed.proj.weight']  # (D, 3, P, P)
  assert patch.shape == (44, 3, 4, 4)
  # Row 1, column 2, channel 0 of a patch of 4x4x3.
  row = ours['patch_embed.kernel'][(1 * 4 + 2) * 3 + 0]
  np.testing.assert_array_equal(patch[:, 0, 1, 2], row)


def test_query_key_and_value_are_thirds_in_this_order():
  ours = small_weights.single().target['trunk.blocks.qkv.kernel'][0]
  for table, layer in (
    (names.HUGGINGFACE, 'encoder.layer.0.attention.attention.{}.weight'),
    (names.HUGGINGFACE_5, 'layers.0.attention.{}_proj.weight'),
  ):
    tensors = small_weights.tensors_of(small_weights.single(), table)
    for i, part in enumerate(('query', 'key', 'value')):
      name = layer.format(part if table is names.HUGGINGFACE else part[0])
      third = ours[:, 44 * i : 44 * (i + 1)]
      np.testing.assert_array_equal(tensors[name], third.T)


@pytest.mark.parametrize('change', ['missing', 'more'])
def test_tree_wants_exactly_the_tensors_of_the_table(change):
  tensors = small_weights.tensors_of(small_weights.single(), names.ENCODER)
  if change == 'missing':
    del tensors['norm.bias']
  else:
    tensors['cls_token'] = np.zeros(3)
  with pytest.raises(KeyError, match=r'norm\.bias|cls_token'):
    names.tree(names.ENCODER, tensors)


def test_flatten_undoes_nest():
  flat = {'a.b.c': 1, 'a.d': 2, 'e': 3}
  assert names.nest(flat) == {'a': {'b': {'c': 1}, 'd': 2}, 'e': 3}
  assert names.flatten(names.nest(flat)) == flat


def test_an_odd_mlp_ratio_is_described_by_a_whole_number():
  assert small_weights.ARCHITECTURE.to_dict()['hidden'] == 192


def test_a_name_alone_does_not_make_millions_of_blocks():
  tensors = ['blocks.1.norm1.weight', f'blocks.{10**12}.norm1.weight']
  assert names.count_blocks(names.ENCODER, tensors) == 2


@pytest.mark.parametrize(
  ('number', 'words'), [(0, '0 heads'), (1, '1 head'), (1234, '1,234 heads')]
)
def test_one_is_not_many(number, words):
  assert weights.counted(number, 'head') == words
