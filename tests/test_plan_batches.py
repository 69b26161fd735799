"""The largest batch is found from the programs of two batches."""

import subprocess
import sys

import pytest
import tiny


@pytest.mark.parametrize('batch_size', [1, 8])
def test_small_batches_are_the_same_program_as_twice_as_many(batch_size):
  """XLA merges equal constants, which a batch and the model's sizes may be."""
  result = subprocess.run(
    [
      *(sys.executable, '-m', 'ijepa_jax.plan', '--devices=1'),
      f'--config={tiny.ROOT / "configs" / "quickstart.py"}',
      '--accelerator=h100-80gb',
      f'--config.batch_size={batch_size}',
      '--config.model.unroll=False',
    ],
    env=tiny.environment(),
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  assert 'fits in 60 GB' in result.stdout
