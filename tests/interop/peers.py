"""The real PyTorch, Hugging Face and timm; without them, tests are skipped."""

import interop_weights
import numpy as np
import pytest
import small_weights

from ijepa_jax import encoder
from ijepa_jax.interop.weights import Weights

_NEEDS = 'needs PyTorch, Hugging Face and timm'
interop_peers = pytest.importorskip('interop_peers', reason=_NEEDS)
interop_reference = pytest.importorskip('interop_reference', reason=_NEEDS)

torch, timm = interop_peers.torch, interop_peers.timm
transformers = interop_peers.transformers
CLASSES = interop_weights.CLASSES
nchw, randomise = interop_reference.nchw, interop_reference.randomise


@pytest.fixture(params=CLASSES.values(), ids=CLASSES, scope='module')
def published(request) -> Weights:
  """Random weights of a published width."""
  return small_weights.single(request.param, ours=True)


def images(size: int) -> np.ndarray:
  """Two squares of noise."""
  return interop_weights.images(2, size, size)


def ours(path, images: np.ndarray) -> np.ndarray:
  """Features by `load_encoder`."""
  return np.asarray(encoder.load_encoder(str(path))(images))


def assert_same_state(a, b) -> None:
  """Two state dicts, bitwise."""
  assert a.keys() == b.keys()
  for name in b:
    assert a[name].dtype == b[name].dtype, name
    assert torch.equal(a[name], b[name]), name
