"""I-JEPA's forward pass once more, in numpy and float64.

Written from the recipe and one image at a time, so that it shares nothing with
the code under test but the names of the reference's tensors. It makes golden
numbers of sizes that no file in `golden/` has.
"""

import json
import math
import pathlib

import numpy as np

_erf = np.vectorize(math.erf)

CONFIG = {
  'width': 24,
  'depth': 3,
  'heads': 2,
  'mlp_ratio': 3.5,
  'predictor_width': 12,
  'predictor_depth': 1,
  'predictor_heads': 3,
  'model': {'patch_size': 4, 'image_size': 20},
}
_PATCHES, _HIDDEN = 25, 84


def _layer_norm(x, eps, scale=1.0, bias=0.0):
  centred = x - x.mean(-1, keepdims=True)
  deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
  return scale * centred / deviation + bias


class _Part:
  """Tensors of an encoder or predictor, and its layers."""

  def __init__(self, tensors, heads):
    self.tensors, self.heads = tensors, heads
    self.activations = []

  def linear(self, name, x):
    return x @ self.tensors[f'{name}.weight'].T + self.tensors[f'{name}.bias']

  def norm(self, name, x):
    weight, bias = (self.tensors[f'{name}.{n}'] for n in ('weight', 'bias'))
    return _layer_norm(x, 1e-6, weight, bias)

  def attention(self, name, x):
    query, key, value = np.split(self.linear(f'{name}.qkv', x), 3, axis=1)
    width = x.shape[1] // self.heads
    heads = []
    for i in range(self.heads):
      of_head = slice(i * width, (i + 1) * width)
      scores = query[:, of_head] @ key[:, of_head].T / math.sqrt(width)
      weights = np.exp(scores)
      weights /= weights.sum(1, keepdims=True)
      heads.append(weights @ value[:, of_head])
    return self.linear(f'{name}.proj', np.concatenate(heads, axis=1))

  def block(self, name, x):
    x = x + self.attention(f'{name}.attn', self.norm(f'{name}.norm1', x))
    y = self.linear(f'{name}.mlp.fc1', self.norm(f'{name}.norm2', x))
    y = y * (1 + _erf(y / math.sqrt(2))) / 2
    x = x + self.linear(f'{name}.mlp.fc2', y)
    self.activations.append(x)
    return x


def _encode(part, image, keep):
  """An image `(3, S, S)` to tokens `(K, D)` of the patches `keep`."""
  kernel = part.tensors['patch_embed.proj.weight']  # (D, 3, P, P)
  side = kernel.shape[-1]
  tokens = []
  for patch in keep:
    row, column = divmod(patch, image.shape[-1] // side)
    rows = slice(row * side, (row + 1) * side)
    columns = slice(column * side, (column + 1) * side)
    pixels = (kernel * image[:, rows, columns]).sum((1, 2, 3))
    pixels = pixels + part.tensors['patch_embed.proj.bias']
    tokens.append(pixels + part.tensors['pos_embed'][0, patch])
  x = np.stack(tokens)
  for i in range(CONFIG['depth']):
    x = part.block(f'blocks.{i}', x)
  return part.norm('norm', x)


def _predict(part, features, context, target):
  positions = part.tensors['predictor_pos_embed'][0]
  known = part.linear('predictor_embed', features) + positions[context]
  asked = part.tensors['mask_token'][0] + positions[target]
  x = np.concatenate([known, asked])
  for i in range(CONFIG['predictor_depth']):
    x = part.block(f'predictor_blocks.{i}', x)
  x = part.norm('predictor_norm', x[len(context) :])
  return part.linear('predictor_proj', x)


def _tensors(rng, width, hidden, blocks, prefix):
  """Random tensors of the blocks and of what both models have."""
  shapes = {
    'norm1.weight': (width,),
    'norm1.bias': (width,),
    'attn.qkv.weight': (3 * width, width),
    'attn.qkv.bias': (3 * width,),
    'attn.proj.weight': (width, width),
    'attn.proj.bias': (width,),
    'norm2.weight': (width,),
    'norm2.bias': (width,),
    'mlp.fc1.weight': (hidden, width),
    'mlp.fc1.bias': (hidden,),
    'mlp.fc2.weight': (width, hidden),
    'mlp.fc2.bias': (width,),
  }
  named = {
    f'{prefix}.{i}.{name}': shape
    for i in range(blocks)
    for name, shape in shapes.items()
  }
  return _draw(rng, named)


def _draw(rng, shapes):
  return {
    name: rng.normal('norm' in name and 'weight' in name, 0.2, shape).astype(
      np.float32
    )
    for name, shape in shapes.items()
  }


def _encoder(rng):
  width = CONFIG['width']
  shapes = {
    'pos_embed': (1, _PATCHES, width),
    'patch_embed.proj.weight': (width, 3, 4, 4),
    'patch_embed.proj.bias': (width,),
    'norm.weight': (width,),
    'norm.bias': (width,),
  }
  return _draw(rng, shapes) | _tensors(
    rng, width, _HIDDEN, CONFIG['depth'], 'blocks'
  )


def _predictor(rng):
  width, outer = CONFIG['predictor_width'], CONFIG['width']
  shapes = {
    'mask_token': (1, 1, width),
    'predictor_pos_embed': (1, _PATCHES, width),
    'predictor_embed.weight': (width, outer),
    'predictor_embed.bias': (width,),
    'predictor_norm.weight': (width,),
    'predictor_norm.bias': (width,),
    'predictor_proj.weight': (outer, width),
    'predictor_proj.bias': (outer,),
  }
  return _draw(rng, shapes) | _tensors(
    rng, width, 4 * width, CONFIG['predictor_depth'], 'predictor_blocks'
  )


def write_golden(folder: pathlib.Path) -> None:
  """Writes `model_numpy.npz` and its config: 3 images, 3 targets, 2 contexts.

  Everything is in the reference's order: target by target, in there context
  by context, in there image by image.
  """
  rng = np.random.default_rng(0)
  tensors = {
    'encoder': _encoder(rng),
    'predictor': _predictor(rng),
    'target_encoder': _encoder(rng),
  }
  pixels = rng.integers(0, 256, (3, 3, 20, 20), np.uint8)
  images = (pixels - 127.5) / 64

  def choose(blocks, length):
    order = rng.permuted(np.tile(np.arange(_PATCHES), (blocks, 3, 1)), axis=-1)
    return np.sort(order[..., :length], axis=-1)

  contexts, targets = choose(2, 7), choose(3, 5)  # (E, B, K), (M, B, T)
  heads = CONFIG['heads']
  target_encoder = _Part(tensors['target_encoder'], heads)
  encoder = _Part(tensors['encoder'], heads)
  predictor = _Part(tensors['predictor'], CONFIG['predictor_heads'])

  everything = range(_PATCHES)
  full = np.stack([_encode(target_encoder, x, everything) for x in images])
  normed = _layer_norm(full, 1e-5)
  features = [
    [_encode(encoder, x, keep) for x, keep in zip(images, context)]
    for context in contexts
  ]
  guesses, truths = [], []
  for target in targets:
    for i, context in enumerate(contexts):
      for j in range(len(images)):
        guesses.append(
          _predict(predictor, features[i][j], context[j], target[j])
        )
        truths.append(normed[j, target[j]])
  guess, truth = np.stack(guesses), np.stack(truths)
  error = np.abs(guess - truth)
  smooth = np.where(error < 1, error**2 / 2, error - 0.5)

  last = CONFIG['depth'] - 1
  arrays = {
    'images_u8': pixels,
    'masks_enc': contexts,
    'masks_pred': targets,
    'target_full': full,
    'target_ln': normed,
    'target_masked': truth,
    'context_out': np.concatenate(features),
    'predictor_out': guess,
    'loss_f64': smooth.mean(),
    'l2_loss_f64': (error**2).mean(),
    f'act/context_block{last:02}': np.stack(
      encoder.activations[last :: CONFIG['depth']]
    ),
    'act/predictor_block00': np.stack(predictor.activations),
  }
  for part, held in tensors.items():
    arrays |= {f'{part}/{name}': tensor for name, tensor in held.items()}
  np.savez(folder / 'model_numpy.npz', **arrays)
  config = json.dumps({'numpy': CONFIG})
  (folder / 'config.json').write_text(config)
