"""Layers, encoder and predictor by themselves, and the count of work."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ijepa_jax import train_step
from ijepa_jax.models import attention, flops, layers, predictor, sizes, vit

golden_size = cases.golden_size

TINY = sizes.Size(width=8, depth=2, heads=2)


# --- Sizes and work --------------------------------------------------------

# Golden table: variant, patch, image, predictor depth; parameters; then mean
# tokens of uncut context, of a context cut at batch 128, and of a target, and
# GFLOP per image uncut and cut.
PUBLISHED = [
  pytest.param(*row, id=f'{row[0]}-{row[2]}')
  for row in (
    ('vit_base', 16, 224, 6, 85_797_120, 11_314_176)
    + (81.7, 50.0, 33.4, 109.0, 83.5),
    ('vit_large', 16, 224, 12, 303_299_584, 22_157_824)
    + (81.7, 50.0, 33.4, 335.3, 258.8),
    ('vit_huge', 14, 224, 12, 630_762_240, 22_377_728)
    + (110.0, 68.6, 44.2, 840.3, 656.3),
    ('vit_huge', 16, 448, 12, 631_668_480, 22_580_480)
    + (359.9, 234.6, 136.2, 2826.1, 2227.0),
    ('vit_giant', 16, 224, 16, 1_011_368_576, 29_550_976)
    + (81.7, 50.0, 33.4, 987.8, 769.2),
  )
]


@pytest.mark.parametrize(
  ('variant', 'patch', 'image', 'depth', 'encoder', 'predictor')
  + ('uncut', 'cut', 'target', 'gflop_uncut', 'gflop_cut'),
  PUBLISHED,
)
def test_published_size(
  variant,
  patch,
  image,
  depth,
  encoder,
  predictor,
  uncut,
  cut,
  target,
  gflop_uncut,
  gflop_cut,
):
  config = cases.config(
    {
      'model.variant': variant,
      'model.patch_size': patch,
      'model.image_size': image,
      'predictor.width': 384,
      'predictor.depth': depth,
    }
  )
  shapes = jax.eval_shape(lambda: train_step.init_state(config).params)
  counts = {
    name: sum(leaf.size for leaf in jax.tree.leaves(tree))
    for name, tree in shapes.items()
  }
  assert counts == {'encoder': encoder, 'predictor': predictor}

  def gflop(context):
    return 1e-9 * flops.step_flops(
      sizes.SIZES[variant],
      train_step.predictor_size(config),
      patch_size=patch,
      patches=(image // patch) ** 2,
      context_tokens=context,
      target_tokens=target,
      num_targets=4,
    )

  assert gflop(uncut) == pytest.approx(gflop_uncut, rel=0.015)
  assert gflop(cut) == pytest.approx(gflop_cut, rel=0.015)


def test_hidden_width_of_giant_and_gigantic_is_whole():
  assert sizes.SIZES['vit_giant'].hidden == 6144
  assert sizes.SIZES['vit_gigantic'].hidden == 8192


def test_gigantic_has_1_8_billion_parameters():
  shapes = nnx.eval_shape(
    lambda: vit.Encoder(
      sizes.SIZES['vit_gigantic'],
      patch_size=14,
      image_size=224,
      rngs=nnx.Rngs(0),
    )
  )
  leaves = jax.tree.leaves(nnx.state(shapes))
  # A block: four kernels, their biases, two norms.
  width, hidden = 1664, 8192
  block = 4 * width**2 + 2 * width * hidden + 9 * width + hidden
  rest = 588 * width + width + 256 * width + 2 * width
  assert sum(leaf.size for leaf in leaves) == 48 * block + rest
  assert 1.8e9 < 48 * block + rest < 1.9e9


# --- Patches and positions -------------------------------------------------


def test_patch_embedding_is_the_strided_convolution():
  rng = np.random.default_rng(0)
  images = rng.normal(size=(2, 12, 12, 3)).astype(np.float32)
  kernel = rng.normal(size=(4, 4, 3, 5)).astype(np.float32)
  convolved = jax.lax.conv_general_dilated(
    images, kernel, (4, 4), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  ours = vit.patchify(images, 4) @ kernel.reshape(-1, 5)
  np.testing.assert_allclose(ours, convolved.reshape(2, 9, 5), atol=1e-5)


def test_positions_encode_the_column_first():
  table = layers.sincos_positions(8, 3).reshape(3, 3, 8)  # row, column
  assert (table[0, :, :4] == table[2, :, :4]).all()
  assert (table[:, 0, 4:] == table[:, 2, 4:]).all()
  angles = 2 * np.array([1, 0.01])  # column 2
  wave = np.concatenate([np.sin(angles), np.cos(angles)])
  np.testing.assert_allclose(table[0, 2, :4], wave, rtol=1e-6)


# --- Attention and blocks --------------------------------------------------


def trunk(size=TINY, **changes):
  return cases.model(
    lambda: (
      vit.Encoder(
        size, patch_size=2, image_size=8, rngs=nnx.Rngs(0), **changes
      ).trunk
    )
  )


@pytest.fixture(scope='module')
def tokens():
  x = np.random.default_rng(0).normal(size=(16, 5, TINY.width))
  return x.astype(np.float32)


def test_attention_looks_at_the_valid_tokens_only(tokens):
  x = tokens.reshape(16, 5, 2, 4)
  lengths = np.full(16, 3, np.int32)
  masked = attention.attend(x, x, x, lengths, 'xla')
  alone = attention.attend(x, x[:, :3], x[:, :3], None, 'xla')
  assert cases.difference(masked, alone) < 1e-6


def test_attention_is_the_softmax_of_scaled_products(tokens):
  x = tokens.reshape(16, 5, 2, 4)
  scores = np.einsum('bqhd,bkhd->bhqk', x, x) / np.sqrt(4)
  weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
  theirs = np.einsum('bhqk,bkhd->bqhd', weights, x)
  ours = attention.attend(x, x, x, None, 'xla')
  assert cases.difference(ours, theirs) < 1e-5


def test_attention_weights_reproduce_the_block(tokens):
  """From the weights alone: what a block adds to its input is their doing."""

  @cases.jit
  def both(model, x):
    before = jax.tree.map(lambda leaf: leaf[0], model.blocks)(x)
    block = jax.tree.map(lambda leaf: leaf[1], model.blocks)
    weights = model.attention_weights(x, [0, 1])[1]
    _, _, value = block._query_key_value(
      block.norm1(before), None, layers.identity
    )
    y = jnp.einsum('bhqk,bkhd->bqhd', weights, value).reshape(before.shape)
    y = before + block.proj(y)
    y += block.fc2(jax.nn.gelu(block.fc1(block.norm2(y)), approximate=False))
    return weights, model.norm(y), model(x)

  weights, ours, theirs = both(trunk(), tokens)
  assert weights.shape == (16, TINY.heads, 5, 5)
  assert cases.difference(weights.sum(-1), np.ones((16, TINY.heads, 5))) < 1e-6
  assert cases.difference(ours, theirs) < 1e-5


def test_trunk_applies_its_blocks_in_order(tokens):
  @cases.jit
  def both(model, x):
    whole = model(x)
    for i in range(TINY.depth):
      x = jax.tree.map(lambda leaf, i=i: leaf[i], model.blocks)(x)
    return whole, model.norm(x)

  assert cases.difference(*both(trunk(), tokens)) < 1e-6


def test_program_does_not_grow_with_the_depth(tokens):
  def products(depth):
    size = sizes.Size(width=8, depth=depth, heads=2)
    program = jax.make_jaxpr(lambda x: trunk(size)(x))(tokens)
    return str(program).count('dot_general')

  assert products(2) == products(12) > 0


def slopes(tokens, **changes):
  """Gradients of a sum over a trunk's outputs."""

  def total(model, tokens):
    return (model(tokens) ** 3).sum()

  run = cases.jit(jax.grad(total, argnums=(0, 1)))
  return jax.tree.leaves(run(trunk(**changes), tokens))


@pytest.fixture(scope='module')
def plain_slopes(tokens):
  return slopes(tokens)


@pytest.mark.parametrize(
  'changes',
  [
    {'remat': 'dots'},
    {'remat': 'full'},
    {'unroll': True},
    {'remat': 'full', 'unroll': True},
  ],
  ids=['dots', 'full', 'unrolled', 'full-unrolled'],
)
def test_way_to_compute_changes_no_gradient(tokens, plain_slopes, changes):
  for ours, plain in zip(slopes(tokens, **changes), plain_slopes, strict=True):
    assert cases.difference(ours, plain) < 1e-5 * np.abs(plain).max()


@pytest.mark.parametrize('depth', [1, 2, 3])
def test_outputs_that_are_not_wanted_change_nothing(tokens, depth):
  size = sizes.Size(width=8, depth=depth, heads=2)
  lengths = np.arange(16, dtype=np.int32) % 4 + 2

  def some(model, tokens, outputs):
    return model(tokens, lengths, outputs=outputs)[:, :2]

  def run(outputs):
    slopes = jax.grad(lambda *args: (some(*args, outputs) ** 3).sum(), (0, 1))
    both = cases.jit(lambda *args: (some(*args, outputs), slopes(*args)))
    return jax.tree.leaves(both(trunk(size), tokens))

  for ours, plain in zip(run(2), run(None), strict=True):
    assert cases.difference(ours, plain) < 1e-5 * max(1, np.abs(plain).max())


def test_every_block_starts_with_other_weights():
  def make():
    encoder = vit.Encoder(TINY, patch_size=2, image_size=8, rngs=nnx.Rngs(0))
    return encoder.trunk.blocks.qkv.kernel[...]

  first, second = cases.jit(make)()
  assert first.shape == (8, 24)
  assert cases.difference(first, second) > 1e-3


# --- Drop path -------------------------------------------------------------


def test_drop_path_of_rate_zero_or_without_key_is_exactly_off(tokens):
  @cases.jit
  def run(plain, dropping, x):
    return plain(x), dropping(x), plain(x, key=jax.random.key(0))

  off, without_key, rate_zero = run(trunk(), trunk(drop_path=0.5), tokens)
  assert cases.difference(without_key, off) == 0
  assert cases.difference(rate_zero, off) == 0


@pytest.fixture(scope='module')
def dropping(tokens):
  """Outputs of a trunk of rate 0.5, as a function of the seed."""

  @cases.jit
  def run(model, x, seed):
    return model(x, key=jax.random.key(seed))

  return functools.partial(run, trunk(drop_path=0.5), tokens)


def test_drop_path_is_random_but_a_function_of_the_key(dropping):
  assert cases.difference(dropping(1), dropping(1)) == 0
  assert cases.difference(dropping(1), dropping(2)) > 1e-6


def test_drop_path_skips_a_branch_or_strengthens_it(dropping, tokens):
  # Of two blocks only the second, of rate 0.5, is ever dropped.
  @cases.jit
  def every_case(model, x):
    first, last = (
      jax.tree.map(lambda leaf, i=i: leaf[i], model.blocks) for i in range(2)
    )
    x = first(x)
    return [
      model.norm(last(x, None, (attention, mlp)))
      for attention in (0.0, 2.0)
      for mlp in (0.0, 2.0)
    ]

  ours = dropping(3)
  matches = np.stack(
    [np.abs(ours - x).max((1, 2)) < 1e-5 for x in every_case(trunk(), tokens)]
  )
  assert (matches.sum(0) == 1).all()
  # Both branches draw for themselves: not all or nothing.
  assert matches[1].any() or matches[2].any()
  assert matches[0].any() or matches[3].any()


def test_share_of_dropped_images_and_mean_strength():
  x = np.zeros((100_000, 1, 1), np.float32)
  kept = np.stack(layers._drop_path(jax.random.key(0), 0.2, x))
  assert set(np.unique(kept)) == {0, np.float32(1 / 0.8)}
  assert (kept == 0).mean() == pytest.approx(0.2, abs=0.01)
  assert kept.mean() == pytest.approx(1, abs=0.01)


# --- Encoder and predictor -------------------------------------------------


@pytest.fixture(scope='module')
def images():
  x = np.random.default_rng(0).normal(size=(3, 8, 8, 3))
  return x.astype(np.float32)


def encode(*inputs, dtype=jnp.float32):
  model = cases.model(
    lambda: vit.Encoder(
      TINY, patch_size=2, image_size=8, dtype=dtype, rngs=nnx.Rngs(0)
    )
  )
  return cases.jit(lambda model, *inputs: model(*inputs))(model, *inputs)


def test_context_of_all_patches_in_order_is_the_whole_image(images):
  everything = np.tile(np.arange(16), (3, 1))
  ours = encode(images, everything, np.full(3, 16))
  assert cases.difference(ours, encode(images)) < 1e-6


def test_encoder_is_equivariant_to_the_order_of_its_context(images):
  context = np.tile([3, 7, 12, 5], (3, 1))
  forward = encode(images, context)
  backward = encode(images, context[:, ::-1])
  assert cases.difference(forward, backward[:, ::-1]) < 1e-6


def test_predictor_predicts_each_block_on_its_own():
  model = predictor.Predictor(TINY, encoder_width=6, grid=4, rngs=nnx.Rngs(0))
  features = np.random.default_rng(0).normal(size=(2, 5, 6))
  context = np.tile(np.arange(5), (2, 1)), np.full(2, 5)
  inputs = model, features.astype(np.float32), *context

  @cases.jit
  def run(model, *inputs):
    return model(*inputs)

  target = np.arange(6, 12).reshape(1, 2, 3).repeat(2, 0)
  other = np.copy(target)
  other[:, 1] = 12, 13, 14
  moved = run(*inputs, target, 3) - run(*inputs, other, 3)
  difference = np.abs(moved).max((0, 2, 3))
  assert difference[0] == 0
  assert difference[1] > 1e-6


def test_dtype_is_of_the_products_only(images):
  rounded = encode(images, dtype=jnp.bfloat16)
  assert rounded.dtype == jnp.float32
  # bfloat16 carries 8 bits: rounding must show, and not more than it.
  assert 1e-4 < cases.difference(rounded, encode(images)) < 0.1
