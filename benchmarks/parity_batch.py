"""Compares one batch: a file `model_NAME.npz`, padding, and the eps probe."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import parity_files
import parity_golden
import parity_models
import parity_report
from parity_golden import Shape
from parity_models import Weights
from parity_report import difference

from ijepa_jax.models import vit

FORWARD = 2e-5  # absolute; PyTorch against its own float64 run is 4e-6
LOSS = 2e-6
GRADIENT = 2e-5  # of the largest value of a tensor
KEY_BIAS = 1e-6  # absolute: zero but for rounding
PADDED_OUTPUT = 1e-5
PADDED_GRADIENT = 1e-5
PROBE = 1e-3  # a wrong eps changes 0.5

# What `parity_models.forward` knows, by the names in the files.
OUTPUTS = (
  'target_full',
  'target_ln',
  'target_masked',
  'context_out',
  'predictor_out',
  'loss',
  'l2_loss',
)
_PADDED = ('context_out', 'predictor_out', 'loss')
_PROBED = ('target_full', 'target_ln', 'context_out')


def compare(
  report: parity_report.Report,
  source: str,
  shape: Shape,
  weights: Weights,
  golden: parity_files.Arrays,
) -> None:
  """Compares all that a file `model_NAME.npz` has."""
  images = golden['images_u8']
  backward = parity_models.jit(parity_models.Model(shape).gradients)
  # '' and 'nenc2_', ...: other masks for the same images.
  for prefix in dict.fromkeys(['', *golden.prefixes('(.*)masks_enc$')]):
    masks = golden[f'{prefix}masks_enc'], golden[f'{prefix}masks_pred']
    parity_golden.check_masks(golden.path, shape, images, *masks)
    batch = parity_golden.make_batch(images, *masks)
    wanted = _wanted(prefix, golden)
    outputs = parity_models.forward(shape, weights, batch, wanted)
    _compare_outputs(report, source, prefix, outputs, golden)
    if f'{prefix}act' in golden.prefixes('(.*act)/'):
      seen = parity_models.activations(shape, weights, batch)
      _compare_activations(report, source, prefix, weights, batch, seen, golden)
    elif not prefix:
      report.skip(source, 'act/*', 'not in the file')
    slopes = jax.device_get(backward(weights, batch))[0]
    _compare_gradients(report, source, prefix, slopes, golden)
    if not prefix:
      _compare_padded(
        report, source, shape, weights, batch, (outputs, slopes), backward
      )


def _wanted(prefix: str, golden: parity_files.Arrays) -> tuple[str, ...]:
  """Outputs that the file has, and those that padding must not change."""
  return tuple(
    name
    for name in OUTPUTS
    if _keys(prefix, name, golden) or (not prefix and name in _PADDED)
  )


def _keys(prefix: str, name: str, golden: parity_files.Arrays) -> list[str]:
  """Where the file has an output: in float32, from a run in float64."""
  keys = f'{prefix}{name}', f'{prefix}{name}_f64'
  return [key for key in keys if key in golden]


def _compare_outputs(
  report: parity_report.Report,
  source: str,
  prefix: str,
  outputs: dict[str, np.ndarray],
  golden: parity_files.Arrays,
) -> None:
  for name in OUTPUTS:
    keys = _keys(prefix, name, golden)
    for key in keys:
      theirs = golden[key]
      if name in ('target_full', 'target_ln'):
        theirs = _per_context(theirs, outputs[name])
      tolerance = LOSS if 'loss' in name else FORWARD
      report.compare(source, key, outputs[name], theirs, tolerance)
    if not keys and not prefix:
      report.skip(source, name, 'not in the file')


def _per_context(theirs: np.ndarray, ours: np.ndarray) -> np.ndarray:
  """Repeats what they have once per image and we have once per context."""
  if not theirs.ndim or len(ours) % len(theirs):
    return theirs
  times = len(ours) // len(theirs)
  return np.tile(theirs, (times,) + (1,) * (theirs.ndim - 1))


# --- Activations -----------------------------------------------------------


def _compare_activations(
  report: parity_report.Report,
  source: str,
  prefix: str,
  weights: Weights,
  batch: dict,
  seen: dict[str, list[np.ndarray]],
  golden: parity_files.Arrays,
) -> None:
  """Compares what leaves the patch embedding and each block.

  No norm bounds these: where they are larger than 1, their difference is
  taken over the largest.
  """
  ours = _named_activations(seen, batch)
  positions = {
    'target_patch_embed': weights.target['pos_embed'],
    'context_patch_embed': weights.params['encoder']['pos_embed'],
  }
  # May leave only what is asked, which is last in theirs.
  last = f'predictor_block{len(seen["predictor"]) - 2:02}'
  for name, theirs in golden.section(f'{prefix}act').items():
    quantity = f'{prefix}act/{name}'
    if name not in ours:
      report.skip(source, quantity, 'no activation that we know')
      continue
    expected = theirs
    if name in positions:
      expected = expected + positions[name]
    if name == 'context_patch_embed':
      # Ours embeds the patches of the context only.
      contexts = len(batch['context']) // len(theirs)
      expected = np.tile(expected, (contexts, 1, 1))
      expected = np.take_along_axis(expected, batch['context'][..., None], 1)
    if name.startswith('target_'):
      expected = _per_context(expected, ours[name])
    if name == last:
      expected = expected[:, -ours[name].shape[1] :]
    scale = max(1.0, float(np.abs(expected).max()))
    worst = difference(ours[name], expected) / scale
    report.add(source, quantity, worst, FORWARD)


def _named_activations(
  seen: dict[str, list[np.ndarray]], batch: dict
) -> dict[str, np.ndarray]:
  """By their names in the golden file; embeddings include positions."""
  named = {}
  images, _, queries = batch['target'].shape
  for model, (first, *blocks) in seen.items():
    if model == 'predictor':
      # Ours is [queries, context], image by image.
      blocks = [
        parity_golden.block_by_block(
          np.roll(x, -queries, axis=1).reshape(images, -1, *x.shape[1:])
        )
        for x in blocks
      ]
    else:
      named[f'{model}_patch_embed'] = first
    named |= {f'{model}_block{i:02}': x for i, x in enumerate(blocks)}
  return named


# --- Gradients -------------------------------------------------------------


def _compare_gradients(
  report: parity_report.Report,
  source: str,
  prefix: str,
  slopes: dict[str, Any],
  golden: parity_files.Arrays,
) -> None:
  ours = parity_golden.to_theirs(slopes)
  present = golden.prefixes('(.*grad(?:norm)?/[a-z]+)/')
  for part in 'encoder', 'predictor':
    name = f'{prefix}grad/{part}'
    if name in present:
      theirs = _under(part, golden.section(name))
      report.add_tensors(
        source, name, ours, theirs, (GRADIENT, KEY_BIAS), scaled=True
      )
    elif not prefix:
      report.skip(source, name, 'not in the file')
    name = f'{prefix}gradnorm/{part}'
    if name in present:
      theirs = _under(part, golden.section(name))
      norms = {
        n: np.asarray(np.linalg.norm(x.astype(np.float64)))
        for n, x in ours.items()
      }
      report.add_tensors(
        source, name, norms, theirs, (GRADIENT, KEY_BIAS), scaled=True
      )
  # The reference has no gradient for positions.
  positions = [x for name, x in ours.items() if name.endswith('pos_embed')]
  largest = max(float(np.abs(x).max()) for x in positions)
  report.add(source, f'{prefix}gradient of positions', largest, 0.0)


def _under(part: str, tensors: dict[str, Any]) -> dict[str, Any]:
  return {f'{part}/{name}': x for name, x in tensors.items()}


# --- Padding ---------------------------------------------------------------


def padded(batch: dict, fill: np.ndarray) -> dict:
  """The batch with 3 and 2 invalid entries more per row.

  Args:
    batch: without padding.
    fill: `(B,)` patch numbers for the padding of each context.
  """
  more = np.repeat(fill[:, None], 3, axis=1).astype(np.int32)
  queries = batch['target'].shape[-1]
  return batch | {
    'context': np.concatenate([batch['context'], more], axis=1),
    'target': parity_golden.pad(batch['target'], queries + 2),
  }


def unseen_patches(batch: dict, patches: int) -> tuple[np.ndarray, np.ndarray]:
  """A patch outside of each context `(B,)`, and whether there is one."""
  outside = np.ones((len(batch['context']), patches), bool)
  np.put_along_axis(outside, batch['context'], False, axis=1)
  return outside.argmax(1), np.asarray(outside.any(1))


def slopes_of_patches(slopes: Any, patch_size: int) -> np.ndarray:
  """Largest gradient at the pixels of each patch, `(B, N)`."""
  return np.abs(vit.patchify(jnp.asarray(slopes), patch_size)).max(-1)


def _compare_padded(
  report: parity_report.Report,
  source: str,
  shape: Shape,
  weights: Weights,
  batch: dict,
  exact: tuple[dict[str, np.ndarray], dict[str, Any]],
  backward: Callable,
) -> None:
  """Compares with our own run without padding, `exact`."""
  outputs, slopes = exact
  unseen, exists = unseen_patches(batch, shape.patches)
  longer = padded(batch, unseen)
  valid = {
    'context_out': batch['context'].shape[-1],
    'predictor_out': batch['target'].shape[-1],
  }
  again = parity_models.forward(shape, weights, longer, _PADDED)
  for name, tokens in valid.items():
    again[name] = again[name][:, :tokens]
  for name in _PADDED:
    report.compare(
      source, f'padded: {name}', again[name], outputs[name], PADDED_OUTPUT
    )

  new, at_pixels = jax.device_get(backward(weights, longer))
  report.add_tensors(
    source,
    'padded: gradients',
    parity_golden.to_theirs(new),
    parity_golden.to_theirs(slopes),
    (PADDED_GRADIENT, KEY_BIAS),
    scaled=True,
  )
  if not exists.any():
    report.skip(source, 'padded: gradient there', 'contexts hold every patch')
    return
  there = slopes_of_patches(at_pixels, shape.patch_size)
  there = np.take_along_axis(there, unseen[:, None], axis=1)
  report.add(source, 'padded: gradient there', there[exists].max(), 0.0)


# --- The probe of the layer norms' eps -------------------------------------


def closest_inputs(
  weights: Weights,
  golden: parity_files.Arrays,
  possible: list[tuple[Shape, dict]],
) -> tuple[Shape, dict]:
  """The sizes and batch that a probe was made with.

  The file does not say which: other images change everything, a wrong eps
  changes `target_full` little.
  """

  def distance(inputs: tuple[Shape, dict]) -> float:
    shape, batch = inputs
    ours = parity_models.forward(shape, weights, batch, ('target_full',))
    return difference(ours['target_full'], golden['target_full'])

  return possible[0] if len(possible) == 1 else min(possible, key=distance)


def compare_probe(
  report: parity_report.Report,
  source: str,
  shape: Shape,
  weights: Weights,
  batch: dict,
  golden: parity_files.Arrays,
) -> None:
  """Compares outputs of such small activations that they show a wrong eps."""
  parts = weights.target, weights.target, weights.params
  found = [
    name
    for name, part in zip(_PROBED, parts, strict=True)
    if part and name in golden
  ]
  outputs = parity_models.forward(shape, weights, batch, tuple(found))
  for name in _PROBED:
    if name in found:
      report.compare(source, name, outputs[name], golden[name], PROBE)
    else:
      report.skip(source, name, 'not in the file, or its weights are not')
