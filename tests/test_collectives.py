"""What the partitioned step sends, and that it replicates nothing by accident.

The expectation is per block of encoder and predictor: three passes forward
(target, context, predictor), two of them also backward.
"""

import functools
import json
import subprocess
import sys

import pytest
import tiny

FORWARD, BACKWARD = 3, 2
KERNELS = 4  # qkv, proj, fc1, fc2
VECTORS = 8  # their biases, and scale and bias of two norms


def expected(data, fsdp, tensor):
  """Collectives of a block by kind."""
  counts = dict.fromkeys(
    ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all'), 0
  )
  if tensor > 1:
    # proj and fc2 sum over their inputs; backward, qkv and fc1.
    counts['all-reduce'] += 2 * FORWARD + 2 * BACKWARD
    # qkv's kernel moves its split from inputs to heads, its gradient back.
    counts['all-to-all'] += FORWARD + BACKWARD
    # The gradient of qkv's bias, which is used whole.
    counts['all-gather'] += BACKWARD
  if fsdp > 1:
    counts['all-gather'] += KERNELS * (FORWARD + BACKWARD)
    counts['reduce-scatter'] += KERNELS * BACKWARD
  if data > 1:
    counts['all-reduce'] += KERNELS * BACKWARD
  if data * fsdp > 1:
    counts['all-reduce'] += VECTORS * BACKWARD
  return counts


@functools.cache
def partition(*shape):
  """Collectives with 2 and with 3 blocks, and what XLA said."""
  meshes = [[*shape, depth] for depth in (2, 3)]
  done = subprocess.run(
    [sys.executable, tiny.ROOT / 'tests' / 'partition.py', json.dumps(meshes)],
    env=tiny.environment(),
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1]), done.stderr


MESHES = [
  (2, 2, 2),
  *(
    pytest.param(*shape, marks=pytest.mark.slow)
    for shape in ((8, 1, 1), (1, 8, 1), (1, 1, 8), (1, 4, 2), (4, 1, 2))
  ),
]


@pytest.mark.parametrize(('data', 'fsdp', 'tensor'), MESHES)
def test_a_block_more_sends_what_is_expected_of_it(data, fsdp, tensor):
  counts = []
  for collectives in partition(data, fsdp, tensor)[0]:
    count = dict.fromkeys(expected(1, 1, 1), 0)
    for x in collectives:
      if x['kind'] == 'collective-permute' and x['times'] == 1:
        continue  # the last block's part of a stack
      count[x['kind']] += x['times']
    counts.append(count)
  two, three = counts
  assert {kind: three[kind] - two[kind] for kind in two} == expected(
    data, fsdp, tensor
  )


@pytest.mark.parametrize(('data', 'fsdp', 'tensor'), MESHES)
def test_no_activation_is_gathered(data, fsdp, tensor):
  largest_kernel = 4 * 64 * 256
  for collectives in partition(data, fsdp, tensor)[0]:
    gathered = [x for x in collectives if x['kind'] == 'all-gather']
    assert all(x['bytes'] <= largest_kernel for x in gathered)


@pytest.mark.parametrize(('data', 'fsdp', 'tensor'), MESHES)
def test_xla_replicates_nothing_against_its_will(data, fsdp, tensor):
  said = partition(data, fsdp, tensor)[1]
  assert 'HloModule' in said  # its log does reach us
  assert 'full rematerialization' not in said
