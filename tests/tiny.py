"""The smallest run that has everything in it, shared by the loop's tests."""

import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import numpy as np
from orbax import checkpoint as ocp

from ijepa_jax import checkpoint_files
from ijepa_jax.config import fields, validate
from ijepa_jax.metrics import writers

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


def rows(workdir: pathlib.Path) -> list[writers.Row]:
  """The rows of metrics.jsonl, which may be in the middle of being written."""
  return writers.read_metrics(workdir / 'metrics.jsonl')


def saved_state(workdir: pathlib.Path, step: int) -> Any:
  """All arrays of a checkpoint, whatever devices wrote it, by Orbax alone."""
  folder = workdir / checkpoint_files.FOLDER / str(step) / 'state'
  checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
  tree = checkpointer.metadata(folder).item_metadata.tree
  as_numpy = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
  )
  return checkpointer.restore(
    folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy)
  )


def assert_same_state(
  workdir: pathlib.Path, other: pathlib.Path, step: int
) -> None:
  """All arrays of their checkpoints are bitwise equal."""
  jax.tree.map(
    np.testing.assert_array_equal,
    saved_state(workdir, step),
    saved_state(other, step),
  )


def assert_same_run(
  workdir: pathlib.Path, other: pathlib.Path, step: int
) -> None:
  """The state bitwise at that step, and one row of the same loss per step."""
  assert_same_state(workdir, other, step)
  curves = [
    [(row['step'], row['train/loss']) for row in rows(folder)]
    for folder in (workdir, other)
  ]
  assert curves[0] == curves[1]
