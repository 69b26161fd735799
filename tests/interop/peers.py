"""The real PyTorch, Hugging Face and timm; without them, tests are skipped."""

import numpy as np
import pytest
import small_weights

from ijepa_jax import encoder
from ijepa_jax.interop.weights import Architecture, Weights
from ijepa_jax.models import sizes

torch = pytest.importorskip('torch', reason='needs PyTorch')


def _declare_operators() -> list:
  """Lets torchvision be imported where its compiled part does not load.

  transformers and timm import it, and it stumbles over the missing declaration
  of operators that nobody needs here.
  """
  try:
    import torchvision  # noqa: F401
  except RuntimeError as error:
    if 'torchvision::' not in str(error):
      raise
  except ImportError:
    pass
  else:
    return []
  library = torch.library.Library('torchvision', 'DEF')
  for name in ('nms', 'qnms'):
    library.define(f'{name}(Tensor dets, Tensor scores, float t) -> Tensor')
  return [library]


_libraries = _declare_operators()  # kept: the declarations end with it

transformers = pytest.importorskip('transformers', reason='needs Hugging Face')
timm = pytest.importorskip('timm', reason='needs timm')


def _shallow(name: str, depth: int, patch: int, grid: int) -> Architecture:
  """A published size with fewer blocks and patches."""
  full = sizes.SIZES[name]
  size = sizes.Size(full.width, depth, full.heads, full.mlp_ratio)
  return Architecture(size, patch, grid * patch)


CLASSES = {
  'huge, 14': _shallow('vit_huge', 1, 14, 2),
  'huge, 16': _shallow('vit_huge', 1, 16, 2),
  'giant, 16': _shallow('vit_giant', 1, 16, 2),
  'large, 16': _shallow('vit_large', 1, 16, 2),
  'base, 16': _shallow('vit_base', 2, 16, 2),
  'small, 16': _shallow('vit_small', 2, 16, 3),
  'tiny, 16': _shallow('vit_tiny', 2, 16, 3),
}


@pytest.fixture(params=CLASSES.values(), ids=CLASSES, scope='module')
def published(request) -> Weights:
  """Random weights of a published width."""
  return small_weights.single(request.param, ours=True)


def images(size: int, seed: int = 0) -> np.ndarray:
  """Normalised noise `(2, S, S, 3)`."""
  rng = np.random.default_rng(seed)
  return rng.normal(size=(2, size, size, 3)).astype(np.float32)


def nchw(images: np.ndarray):
  return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def ours(path, images: np.ndarray) -> np.ndarray:
  """Features by `load_encoder`."""
  return np.asarray(encoder.load_encoder(str(path))(images))


def randomise(model):
  """Random numbers in every tensor, biases and norms too."""
  rng = np.random.default_rng(0)
  with torch.no_grad():
    for name, tensor in model.state_dict().items():
      norm = tensor.ndim == 1 and name.endswith('weight')
      value = rng.normal(norm, 0.03, tuple(tensor.shape))
      tensor.copy_(torch.from_numpy(value))
  return model.eval()


def assert_same_state(a, b) -> None:
  """Two state dicts, bitwise."""
  assert a.keys() == b.keys()
  for name in b:
    assert a[name].dtype == b[name].dtype, name
    assert torch.equal(a[name], b[name]), name
