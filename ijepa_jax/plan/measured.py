"""What was measured on the same kind of accelerator, to compare a plan with."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from ijepa_jax.accelerators import Accelerator

# In a copy of the repository; an installed package has none.
FOLDER = pathlib.Path(__file__).parents[2] / 'benchmarks' / 'results'


class Measured(NamedTuple):
  """A measured training step.

  Attributes:
    file: name of the record.
    name: of the step, with model, batch and mesh.
    utilisation: share of the peak rate; padding is no work.
    images_per_second: on all its devices.
  """

  file: str
  name: str
  utilisation: float
  images_per_second: float


def find(
  accelerator: Accelerator, folder: pathlib.Path = FOLDER
) -> list[Measured]:
  """The steps of all records of `ijepa_jax.benchmark` and `gpu_check.py`."""
  found = []
  for path in sorted(folder.glob('*.json')):
    record = json.loads(path.read_text())
    machine = record.get('machine')
    if (
      not isinstance(machine, dict)
      or machine.get('device_kind') not in accelerator.kinds
    ):
      continue
    for name, values in _steps(record.get('results', {})):
      if values.get('utilisation'):
        rate = values['images_per_second']
        found.append(
          Measured(
            path.name,
            name,
            values['utilisation'],
            rate['median'] if isinstance(rate, dict) else rate,
          )
        )
  return found


def _steps(results: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
  if step := results.get('step'):
    yield step['name'], step
  for row in results.get('gpu_check', {}).get('rows', []):
    yield row['name'], row.get('values', {})
