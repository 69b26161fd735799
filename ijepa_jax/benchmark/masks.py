"""Speed of the mask sampler, in samples (one context and its targets).

Per second of CPU time: the sampler has one thread, and what else runs on its
core does not count. All cases take turns, so that a busy moment of the machine
does not fall on one.
"""

import dataclasses
import itertools
import time
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from ijepa_jax.benchmark import record, report
from ijepa_jax.config import fields, validate
from ijepa_jax.data import masks, pipeline

# Image and patch sizes of the published models, and a small one.
_GEOMETRIES = ((224, 14), (224, 16), (448, 16), (96, 8))
_KEEP = ('first', 'random')
_BATCH_SIZES = (128, 2048)
# Drawn per measurement, or one batch where that is more.
_SAMPLES = 16_384


class _Case(NamedTuple):
  """What is drawn."""

  image_size: int
  patch_size: int
  spec: masks.MaskSpec
  batch_size: int


def measure(
  config: ConfigDict | None, *, repeats: int = 15, samples: int = _SAMPLES
) -> dict[str, Any]:
  """Times the sampler.

  Args:
    config: whose masks; None: the published masks at several image and patch
      sizes, both ways to cut a context, two batch sizes.
    repeats: turns that count; one before them fills caches.
    samples: per case and turn, or one batch where that is more.

  Returns:
    Ready for JSON: `cases` with median, quartiles and best.
  """
  cases = _published() if config is None else [_of(config)]
  speeds: list[list[float]] = [[] for _ in cases]
  report.say(f'masks: {len(cases)} cases, {repeats} turns each')
  for repeat in range(repeats + 1):
    for case, values in zip(cases, speeds):
      speed = _samples_per_second(case, samples)
      if repeat:
        values.append(speed)
  return {
    'unit': 'samples per second of CPU time',
    'samples': samples,
    'cases': [
      {
        'image_size': case.image_size,
        'patch_size': case.patch_size,
        'context_tokens': case.spec.context_tokens,
        'target_tokens': case.spec.target_tokens,
        'keep': case.spec.keep,
        'batch_size': case.batch_size,
        **record.spread(values),
        'best': max(values),
      }
      for case, values in zip(cases, speeds)
    ],
  }


def speed_of(config: ConfigDict, *, samples: int = _SAMPLES) -> float:
  """Samples per second of CPU time, of a config's masks, measured once."""
  return _samples_per_second(_of(config), samples)


def table(result: dict[str, Any]) -> str:
  """The result of `measure` for people."""
  rows = [
    (
      f'{case["image_size"]}/{case["patch_size"]}',
      case['keep'],
      f'batch {case["batch_size"]}',
      report.number(case['median']),
      f'quartiles {report.quartiles(case)}, best {report.number(case["best"])}',
    )
    for case in result['cases']
  ]
  return f'masks: {result["unit"]}\n{report.columns(rows)}'


def _of(config: ConfigDict) -> _Case:
  model = config.model
  spec = pipeline.mask_spec(config)
  return _Case(model.image_size, model.patch_size, spec, config.batch_size)


def _published() -> list[_Case]:
  """The published masks."""
  cases = []
  for image_size, patch_size in _GEOMETRIES:
    config = fields.defaults()
    config.model.image_size, config.model.patch_size = image_size, patch_size
    case = _of(validate.resolve(config))
    for keep, batch_size in itertools.product(_KEEP, _BATCH_SIZES):
      spec = dataclasses.replace(case.spec, keep=keep)
      cases.append(case._replace(spec=spec, batch_size=batch_size))
  return cases


def _samples_per_second(case: _Case, samples: int) -> float:
  batches = max(1, samples // case.batch_size)
  start = time.process_time()
  for step in range(batches):
    masks.sample_masks(case.spec, 0, step, case.batch_size)
  return batches * case.batch_size / (time.process_time() - start)
