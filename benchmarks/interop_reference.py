"""A plain PyTorch model with the modules and names of the authors' encoder.

Written from the paper: the authors' code is under another licence. A test
holds its outputs to numbers that their code has computed.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ijepa_jax.interop.weights import Architecture
from ijepa_jax.models import sizes


class PatchEmbed(nn.Module):
  """One linear layer for every patch."""

  def __init__(self, width: int, patch: int):
    super().__init__()
    self.proj = nn.Conv2d(3, width, patch, patch)

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    """`(B, 3, S, S)` to `(B, N, D)`."""
    return self.proj(images).flatten(2).transpose(1, 2)


class Attention(nn.Module):
  """Multi-head self-attention."""

  def __init__(self, width: int, heads: int):
    super().__init__()
    self.heads = heads
    self.qkv = nn.Linear(width, 3 * width)
    self.proj = nn.Linear(width, width)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """`(B, N, D)` to the same."""
    qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, N, 3, H, D / H)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    x = functional.scaled_dot_product_attention(query, key, value)
    return self.proj(x.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
  """Two layers."""

  def __init__(self, width: int, hidden: int):
    super().__init__()
    self.fc1 = nn.Linear(width, hidden)
    self.fc2 = nn.Linear(hidden, width)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """`(B, N, D)` to the same."""
    return self.fc2(functional.gelu(self.fc1(x)))


class Block(nn.Module):
  """A block; its parameters are in the order of the authors' modules."""

  def __init__(self, size: sizes.Size):
    super().__init__()
    self.norm1 = nn.LayerNorm(size.width, eps=1e-6)
    self.attn = Attention(size.width, size.heads)
    self.norm2 = nn.LayerNorm(size.width, eps=1e-6)
    self.mlp = Mlp(size.width, size.hidden)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """`(B, N, D)` to the same."""
    x = x + self.attn(self.norm1(x))
    return x + self.mlp(self.norm2(x))


def blocks(size: sizes.Size) -> nn.ModuleList:
  """All blocks of an encoder or a predictor."""
  return nn.ModuleList(Block(size) for _ in range(size.depth))


def frozen(*shape: int) -> nn.Parameter:
  """A parameter without gradient."""
  return nn.Parameter(torch.zeros(shape), requires_grad=False)


class Encoder(nn.Module):
  """The encoder, for images of its own side."""

  def __init__(self, architecture: Architecture):
    super().__init__()
    size, patch = architecture.size, architecture.patch_size
    self.pos_embed = frozen(1, architecture.grid**2, size.width)
    self.patch_embed = PatchEmbed(size.width, patch)
    self.blocks = blocks(size)
    self.norm = nn.LayerNorm(size.width, eps=1e-6)

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    """`(B, 3, S, S)` to `(B, N, D)`."""
    x = self.patch_embed(images) + self.pos_embed
    for block in self.blocks:
      x = block(x)
    return self.norm(x)


class Parallel(nn.Module):
  """Names as under DistributedDataParallel, and random numbers."""

  def __init__(self, module: nn.Module):
    super().__init__()
    self.module = randomise(module)

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    """As the module."""
    return self.module(images)


def randomise(model: nn.Module) -> nn.Module:
  """Random numbers in every tensor, biases and norms too."""
  rng = np.random.default_rng(0)
  with torch.no_grad():
    for name, tensor in model.state_dict().items():
      norm = tensor.ndim == 1 and name.endswith('weight')
      value = rng.normal(norm, 0.03, tuple(tensor.shape))
      tensor.copy_(torch.from_numpy(value))
  return model.eval()


def nchw(images: np.ndarray) -> torch.Tensor:
  """`(B, H, W, 3)` to PyTorch's `(B, 3, H, W)`."""
  return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
