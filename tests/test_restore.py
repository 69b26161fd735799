"""What was saved on some devices is the same bits on others.

Parameters, target and Adam moments: `restore_process.py` compares them.
"""

import cluster
import pytest
import restore_process

from ijepa_jax.models import sizes


@pytest.fixture(autouse=True)
def eight_heads(monkeypatch):
  monkeypatch.setitem(sizes.SIZES, 'vit_micro', restore_process.SIZE)


def pass_on(workdir, processes, devices, *mesh):
  """Restores and saves in new processes, with `devices` devices each."""
  started = [
    cluster.start_script('restore_process.py', [workdir, *mesh], environment)
    for environment in cluster.environments(processes, devices)
  ]
  outputs = [process.communicate(timeout=300)[0] for process in started]
  assert [process.returncode for process in started] == [0] * processes, outputs


def steps(workdir):
  return sorted(int(p.name) for p in (workdir / 'checkpoints').iterdir())


def test_eight_devices_to_one_and_back(tmp_path):
  restore_process.pass_on(tmp_path, 2, 2, 2)
  pass_on(tmp_path, 1, 1, 1, 1, 1)
  restore_process.pass_on(tmp_path, 1, 8, 1)
  assert steps(tmp_path) == [2, 3]


@pytest.mark.slow
def test_down_to_one_device_and_up_again(tmp_path):
  meshes = [
    (1, 2, 4),
    (1, 4, 1),
    (1, 1, 4),
    (2, 1, 1),
    (1, 2, 1),
    (1, 1, 2),
    (1, 1, 1),
    (1, 1, 8),
    (8, 1, 1),
    (4, 2, 1),
  ]
  for data, fsdp, tensor in meshes:
    pass_on(tmp_path, 1, data * fsdp * tensor, data, fsdp, tensor)
  assert steps(tmp_path)[-1] == len(meshes)


@pytest.mark.slow
def test_other_numbers_of_processes(tmp_path):
  runs = [
    (2, 2, (1, 2, 2)),
    (1, 1, (1, 1, 1)),
    (2, 2, (1, 4, 1)),
    (1, 8, (2, 2, 2)),
    (4, 1, (2, 2, 1)),
    (2, 2, (2, 1, 2)),
  ]
  for processes, devices, mesh in runs:
    pass_on(tmp_path, processes, devices, *mesh)
  assert steps(tmp_path)[-1] == len(runs)
