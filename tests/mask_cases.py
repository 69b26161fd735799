"""Published masks, and padded indices as maps; shared by the mask tests."""

import numpy as np

from ijepa_jax.data import masks

RECIPE = {
  'num_targets': 4,
  'target_scale': (0.15, 0.2),
  'target_aspect': (0.75, 1.5),
  'context_scale': (0.85, 1.0),
}

# Name in the golden file, patches per side.
GEOMETRIES = {'224_14': 16, '224_16': 14, '448_16': 28, '96_8': 12}


def make_spec(grid, *, context_tokens=None, min_keep=10, **changes):
  """The published masks on a grid, uncut unless told otherwise."""
  fields = RECIPE | changes
  longest = masks.default_target_tokens(
    grid,
    fields['target_scale'],
    fields['target_aspect'],
    fields.get('bounds', 'reference'),
  )
  return masks.MaskSpec(
    grid=grid,
    min_keep=min_keep,
    context_tokens=context_tokens or grid**2,
    target_tokens=longest,
    **fields,
  )


def dense(indices, lengths, patches):
  """Padded indices `(..., L)` as bool `(..., N)`; refuses repetitions."""
  valid = np.arange(indices.shape[-1]) < np.asarray(lengths)[..., None]
  counts = np.zeros((*indices.shape[:-1], patches), int)
  where = np.nonzero(np.broadcast_to(valid, indices.shape))
  np.add.at(counts, (*where[:-1], indices[where]), 1)
  assert counts.max() <= 1
  return counts.astype(bool)


def dense_context(drawn, spec):
  return dense(drawn.context, drawn.context_length, spec.grid**2)


def dense_target(drawn, spec):
  lengths = drawn.target_length[:, None]
  return dense(drawn.target, lengths, spec.grid**2)
