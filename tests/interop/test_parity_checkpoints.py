"""Checkpoints beside the arrays of a golden folder."""

import cases
import numpy as np
import parity
import parity_files
from peers import torch


def write_checkpoint(path, tensors):
  parts = {part: {} for part in parity_files.PARTS}
  for name, tensor in tensors.items():
    part, _, name = name.partition('/')
    parts[part][f'module.{name}'] = torch.from_numpy(tensor)
  torch.save({**parts, 'opt': None, 'epoch': 1}, path)


def opened(tmp_path, change=lambda tensors: None):
  """A folder's comparison, the arrays, and tensors of their checkpoint."""
  golden = cases.golden('model_micro')
  tensors = golden.tensors('')
  change(tensors)
  path = tmp_path / 'model_micro.pth.tar'
  write_checkpoint(path, tensors)
  comparison = parity.Comparison(parity_files.Folder(tmp_path))
  return comparison, golden, path


def test_weights_are_read_where_the_arrays_have_none(tmp_path):
  comparison, golden, path = opened(tmp_path)
  empty = parity_files.Arrays({}, golden.path)
  tensors = comparison._tensors(empty, path, '')
  assert tensors.keys() == golden.tensors('').keys()
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(tensor, golden[name])


def test_same_weights_in_both_pass(tmp_path):
  comparison, golden, path = opened(tmp_path)
  comparison._tensors(golden, path, '')
  (row,) = comparison.report.rows
  assert row.passed


def test_one_changed_bit_fails(tmp_path):
  def change(tensors):
    tensors['encoder/norm.bias'] = np.nextafter(
      tensors['encoder/norm.bias'], np.float32(1)
    )

  comparison, golden, path = opened(tmp_path, change)
  comparison._tensors(golden, path, '')
  (row,) = comparison.report.failed
  assert row.difference == 1
