"""The written-down derivatives against JAX's own, and what they keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ijepa_jax.models import elementwise


def plain_standardise(x):
  return jax.nn.standardize(x, epsilon=1e-6)


PAIRS = {
  'gelu': (elementwise.gelu, lambda x: jax.nn.gelu(x, approximate=False)),
  'standardise': (
    lambda x: elementwise.standardise(x, 1e-6),
    plain_standardise,
  ),
  'softmax': (
    lambda x: elementwise.softmax(x, jnp.dtype('float32')),
    jax.nn.softmax,
  ),
}


def numbers(shape, scale=2.0):
  return scale * np.random.default_rng(0).standard_normal(shape, np.float32)


@pytest.mark.parametrize('name', PAIRS)
def test_value_and_gradient(name):
  ours, plain = PAIRS[name]
  x, g = numbers((7, 24)), numbers((24,))
  for one, other in (
    (ours(x), plain(x)),
    (jax.vjp(ours, x)[1](g + 0 * x)[0], jax.vjp(plain, x)[1](g + 0 * x)[0]),
  ):
    np.testing.assert_allclose(one, other, atol=2e-6)


def test_gelu_far_from_zero():
  slopes = jax.grad(lambda x: elementwise.gelu(x).sum())(
    jnp.array([-1e4, -30.0, 0.0, 30.0, 1e4])
  )
  np.testing.assert_array_equal(slopes, [0, 0, 0.5, 1, 1])


def test_a_constant_row_is_standardised_to_zeros():
  x = jnp.full((2, 8), 3.0)
  value, backward = jax.vjp(lambda x: elementwise.standardise(x, 1e-6), x)
  assert not np.any(value)
  assert np.all(np.isfinite(backward(numbers((2, 8)))[0]))


@pytest.mark.parametrize('name', PAIRS)
def test_one_array_is_kept(name):
  ours, _ = PAIRS[name]
  x = jax.ShapeDtypeStruct((7, 24), jnp.float32)
  kept = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(ours, x)[1], x))
  assert sum(leaf.shape == x.shape for leaf in kept) == 1


def test_softmax_rounds_only_its_result():
  logits = numbers((3, 16))
  exact = elementwise.softmax(logits, jnp.dtype('float32'))
  rounded = elementwise.softmax(logits, jnp.dtype('bfloat16'))
  assert rounded.dtype == jnp.bfloat16
  np.testing.assert_array_equal(rounded, exact.astype(jnp.bfloat16))
