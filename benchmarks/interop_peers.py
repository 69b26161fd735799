"""The other side of each format: PyTorch's models, and plain readers of ours.

A peer makes a model of random numbers, saves and loads it as its users do, and
computes features. None of it goes through our readers and writers.
"""

import functools
import os
import warnings
from typing import Any, NamedTuple, Protocol

import interop_weights
import jax
import numpy as np
import torch
from absl import logging
from flax import nnx
from interop_reference import Encoder, Parallel, nchw, randomise
from orbax import checkpoint as ocp
from safetensors import numpy as safetensors

from ijepa_jax import checkpoint
from ijepa_jax.interop import names, weights, writing
from ijepa_jax.interop.weights import Architecture
from ijepa_jax.models import layers


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

import timm  # noqa: E402
import transformers  # noqa: E402


def quiet() -> None:
  """Orbax and transformers have something to say of every file."""
  logging.set_verbosity(logging.ERROR)
  warnings.filterwarnings('ignore', 'Sharding info not provided')
  transformers.utils.logging.disable_progress_bar()


class Peer(Protocol):
  """A program that reads and writes a format.

  Attributes:
    other_sides: whether it interpolates the positions for other images.
  """

  other_sides: bool

  def make(self, architecture: Architecture) -> Any:
    """A model of random numbers."""

  def save(self, model: Any, path: str) -> None:
    """Saves it as the program's users do."""

  def load(self, path: str, architecture: Architecture) -> Any:
    """A model that was saved here, or written by us."""

  def tensors(self, model: Any) -> dict[str, np.ndarray]:
    """All of its tensors, by the program's names."""

  def features(self, model: Any, images: np.ndarray) -> np.ndarray:
    """Features `(B, N, D)` of normalised images `(B, H, W, 3)`."""


# --- Our own formats, read plainly -----------------------------------------


class Ours(NamedTuple):
  """Our module, and its parameters by dotted path."""

  architecture: Architecture
  params: dict[str, np.ndarray]


class _Plain:
  """What the peers of our own formats have in common."""

  other_sides = False

  def make(self, architecture: Architecture) -> Ours:
    shapes = weights.shapes(architecture.encoder())
    return Ours(architecture, dict(interop_weights.random(shapes, seed=1)))

  def tensors(self, model: Ours) -> dict[str, np.ndarray]:
    return model.params

  def features(self, model: Ours, images: np.ndarray) -> np.ndarray:
    params = names.nest(model.params)
    return np.asarray(_encode(model.architecture, params, images))


@functools.partial(jax.jit, static_argnums=0)
def _encode(architecture: Architecture, params: Any, images: Any) -> jax.Array:
  return nnx.merge(nnx.graphdef(architecture.encoder()), params)(images)


class Flax(_Plain):
  """The safetensors library alone."""

  def save(self, model: Ours, path: str) -> None:
    os.mkdir(path)
    file = os.path.join(path, 'model.safetensors')
    safetensors.save_file(model.params, file)

  def load(self, path: str, architecture: Architecture) -> Ours:
    file = os.path.join(path, 'model.safetensors')
    return Ours(architecture, safetensors.load_file(file))


class Orbax(_Plain):
  """Orbax alone; saved as a run saves its state."""

  def save(self, model: Ours, path: str) -> None:
    meta = {'architecture': model.architecture.to_dict(), 'progress': {}}
    run = checkpoint.Checkpoints(path, keep=1, keep_period=None)
    tree = names.nest(model.params)
    run.save(1, {'params': {'encoder': tree}, 'target': tree}, meta)
    run.close()

  def load(self, path: str, architecture: Architecture) -> Ours:
    state = ocp.PyTreeCheckpointer().restore(os.path.join(path, 'state'))
    flat = names.flatten(state['target'])
    return Ours(architecture, {k: np.asarray(x) for k, x in flat.items()})


# --- PyTorch ---------------------------------------------------------------


class _PyTorch:
  """What the peers in PyTorch have in common."""

  other_sides = False

  def tensors(self, model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: x.numpy() for name, x in model.state_dict().items()}

  def features(self, model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
      return self.forward(model.eval(), nchw(images)).numpy()

  def forward(self, model: Any, images: torch.Tensor) -> torch.Tensor:
    """Features `(B, N, D)` of `(B, 3, H, W)`."""
    return model(images)


class HuggingFace(_PyTorch):
  """transformers."""

  other_sides = True

  def make(self, architecture: Architecture) -> torch.nn.Module:
    size = architecture.size
    config = transformers.IJepaConfig(
      hidden_size=size.width,
      num_hidden_layers=size.depth,
      num_attention_heads=size.heads,
      intermediate_size=size.hidden,
      patch_size=architecture.patch_size,
      image_size=architecture.image_size,
      layer_norm_eps=layers.EPSILON,
    )
    return randomise(transformers.IJepaModel(config))

  def save(self, model: Any, path: str) -> None:
    model.save_pretrained(path)

  def load(self, path: str, architecture: Architecture) -> torch.nn.Module:
    return transformers.AutoModel.from_pretrained(path)

  def forward(self, model: Any, images: torch.Tensor) -> torch.Tensor:
    out = model(images, interpolate_pos_encoding=True)
    return out.last_hidden_state


class Timm(_PyTorch):
  """timm."""

  def make(self, architecture: Architecture) -> torch.nn.Module:
    name, arguments = writing.timm_model(architecture)
    model: Any = timm.create_model(name, **{'num_classes': 0} | arguments)
    model.arguments = arguments
    return randomise(model)

  def save(self, model: Any, path: str) -> None:
    timm.models.save_for_hf(
      model, path, model_args=model.arguments, safe_serialization=True
    )

  def load(self, path: str, architecture: Architecture) -> torch.nn.Module:
    return timm.create_model(f'local-dir:{path}', pretrained=True)

  def forward(self, model: Any, images: torch.Tensor) -> torch.Tensor:
    return model.forward_features(images)


class Reference(_PyTorch):
  """A model with the names of the authors' code."""

  def make(self, architecture: Architecture) -> torch.nn.Module:
    return Parallel(Encoder(architecture))

  def save(self, model: torch.nn.Module, path: str) -> None:
    state = model.state_dict()
    torch.save({'encoder': state, 'target_encoder': state, 'epoch': 1}, path)

  def load(self, path: str, architecture: Architecture) -> torch.nn.Module:
    model = Parallel(Encoder(architecture))
    content = torch.load(path, weights_only=True)
    model.load_state_dict(content['target_encoder'])
    return model


PEERS: dict[str, Peer] = {
  'orbax': Orbax(),
  'flax': Flax(),
  'huggingface': HuggingFace(),
  'timm': Timm(),
  'reference': Reference(),
}
