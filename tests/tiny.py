"""The smallest run that has everything in it, shared by the loop's tests."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from ijepa_jax.config import fields, validate

ROOT = pathlib.Path(__file__).parent.parent

FIELDS = {
  'batch_size': 8,
  'total_steps': 6,
  'model.variant': 'vit_micro',
  'model.patch_size': 4,
  'model.image_size': 24,
  'predictor.width': 48,
  'predictor.depth': 1,
  'mask.min_keep': 3,
  'mask.context_tokens': 14,
  'data.source': 'scenes',
  'data.workers': 0,
  'optim.warmup_epochs': 0.0,
  'optim.ema': 0.9,
  'checkpoint.every': 2,
  'log.every': 1,
  'log.tensorboard': False,
  'eval.every': 0,
  'eval.split': 'test',
  'eval.train_examples': 32,
  'eval.test_examples': 16,
}


def config(**overrides: Any):
  """The tiny config; overrides are named with `__` for the dot."""
  result = fields.defaults()
  named = {name.replace('__', '.'): value for name, value in overrides.items()}
  for name, value in (FIELDS | named).items():
    fields.assign(result, name, value)
  validate.validate(result)
  return validate.resolve(result)


def command(workdir: pathlib.Path, **overrides: Any) -> list[str]:
  """The same run as a command line."""
  named = {name.replace('__', '.'): value for name, value in overrides.items()}
  return [
    sys.executable,
    '-m',
    'ijepa_jax.main',
    f'--config={ROOT / "tests" / "tiny_config.py"}',
    f'--workdir={workdir}',
    *(f'--config.{name}={value}' for name, value in (FIELDS | named).items()),
  ]


def environment() -> dict[str, str]:
  """One device per process, compiled programs kept between processes."""
  return os.environ | {'XLA_FLAGS': '', 'PYTHONPATH': str(ROOT)}


def run(
  workdir: pathlib.Path, **overrides: Any
) -> subprocess.CompletedProcess[str]:
  """Runs the command to its end."""
  return subprocess.run(
    command(workdir, **overrides),
    env=environment(),
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


def rows(workdir: pathlib.Path) -> list[dict[str, float]]:
  """The rows of metrics.jsonl."""
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]
