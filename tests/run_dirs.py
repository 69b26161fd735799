"""Directories as runs leave them, without training."""

import base64
import json
import pathlib
from typing import Any

# One white pixel.
PNG = base64.b64decode(
  'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAG7buVgAA'
  'AABJRU5ErkJggg=='
)
TIME = 1.79e9


def rows(label: str = 'class', steps: int = 900) -> list[dict[str, float]]:
  """Rows of a run that went well."""
  made: list[dict[str, float]] = []
  for step in range(0, steps + 1, 20):
    row = {'step': step, 'time': TIME + step}
    if step:
      row |= {
        'train/loss': 1 / step,
        'train/lr': 1e-3,
        'train/images_per_second': 300.0,
        'health/target_variance': 0.5,
      }
    if step % 300 == 0:
      row |= {
        'health/rankme': 10 + step / 100,
        'health/lidar': 20.0,
        f'probe/{label}/knn': 0.3 + step / 3000,
        f'probe/{label}/linear': 0.4,
      }
      for block in range(4):
        row |= {
          f'rankme_block/{block:02}': 5.0 + block,
          f'attention_entropy/{block:02}': 0.9,
        }
    made.append(row)
  first = made[0]
  first |= {f'pixels/probe/{label}/knn': 0.25, f'chance/{label}': 0.125}
  return made


def result(label: str = 'class', **changes: Any) -> dict[str, Any]:
  """A row of evaluation/results.json."""
  return {
    'task': 'knn',
    'label': label,
    'metric': 'top1',
    'value': 0.61234,
    'low': 0.58,
    'high': 0.64,
    'chance': 0.125,
    'pixels': 0.25,
    'init': 0.3,
    'details': {'k': 20},
    **changes,
  }


def make(
  path: pathlib.Path, label: str = 'class', lr: float = 1e-3, steps: int = 900
) -> pathlib.Path:
  """Writes a finished run that was evaluated and has a picture."""
  (path / 'checkpoints' / str(steps)).mkdir(parents=True)
  (path / 'checkpoints' / f'{steps}.orbax-checkpoint-tmp').mkdir()
  (path / 'evaluation').mkdir()
  (path / 'visualize').mkdir()
  (path / 'lock').write_bytes(b'')
  (path / 'masks.png').write_bytes(PNG)
  (path / 'visualize' / 'pca.png').write_bytes(PNG)
  lines = [json.dumps(row) for row in rows(label, steps)]
  (path / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
  start = {
    'time': TIME,
    'step': 0,
    'steps': 900,
    'steps_per_epoch': 100,
    'warmup_steps': 50,
    'command': ['python', '-m', 'ijepa_jax.main', '--workdir=a b'],
    'directory': '/home/user',
    'host': 'node1',
    'variables': {'XLA_FLAGS': '--xla_x=1'},
    'devices': '1 cpu',
    'processes': 1,
    'versions': {'jax': '0.10.2'},
    'data': {'name': 'scenes', 'epoch_length': 10_000},
  }
  (path / 'starts.jsonl').write_text(json.dumps(start) + '\n')
  for file, content in {
    'config.json': {'seed': 0, 'model': {'variant': 'vit_micro'},
                    'optim': {'lr': lr}},
    'evaluation/results.json': {
      'format': 1,
      'tasks': {'knn': {'command': ['python', '-m', 'ijepa_jax.evaluate']}},
      'results': [result(label)],
    },
    'visualize/visualize.json': [
      {'file': 'pca.png', 'title': 'PCA', 'explanation': 'Colours.',
       'figures': {'explained': 0.4321}, 'command': 'python -m pca'}
    ],
  }.items():  # fmt: skip
    (path / file).write_text(json.dumps(content))
  return path
