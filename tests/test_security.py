"""No file that is read can run a program, no port is open to everybody."""

import ast
import contextlib
import io
import os
import pathlib

import cluster
import numpy as np
import parity_files
import pytest
import tiny

from ijepa_jax import errors
from ijepa_jax.data import folder_index

_FOLDERS = ('ijepa_jax', 'benchmarks', 'examples', 'configs')
# What runs code of its argument, always or unless it is told not to.
_UNSAFE = {'pickle.load', 'pickle.loads', 'marshal.loads', 'shelve.open'}
_UNSAFE |= {'eval', 'exec', 'yaml.load', 'joblib.load', 'cloudpickle.loads'}
_SAFE_WITH = {
  'np.load': ('allow_pickle', False),
  'torch.load': ('weights_only', True),
}


def calls():
  for folder in _FOLDERS:
    for path in (tiny.ROOT / folder).rglob('*.py'):
      for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
          yield ast.unparse(node.func), node, f'{path}:{node.lineno}'


def test_everything_that_loads_files_is_told_not_to_run_them():
  seen = set()
  for name, node, where in calls():
    assert name not in _UNSAFE, where
    if name in _SAFE_WITH:
      seen.add(name)
      option, value = _SAFE_WITH[name]
      given = {word.arg: ast.unparse(word.value) for word in node.keywords}
      assert given.get(option) == str(value), where
  assert seen == set(_SAFE_WITH)


class Malice:
  """Makes a file when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


def archive(path):
  buffer = io.BytesIO()
  np.savez(buffer, folders=np.array([Malice(path)], object))
  return buffer.getvalue()


def test_a_pickle_inside_an_npz_file_does_not_run(tmp_path):
  (tmp_path / 'a.npz').write_bytes(archive(tmp_path / 'ran'))
  with pytest.raises(errors.UserError, match='no readable npz'):
    parity_files.read(tmp_path / 'a.npz')
  assert not (tmp_path / 'ran').exists()


def test_a_pickle_inside_the_remembered_list_of_images_does_not_run(
  tmp_path, monkeypatch
):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  root = os.fspath(tmp_path / 'images')
  payload = archive(tmp_path / 'ran')
  cache = pathlib.Path(folder_index._cache_file(root))
  cache.parent.mkdir(parents=True)
  header = folder_index._MAGIC + folder_index._digest(payload)
  cache.write_bytes(header + payload)
  with pytest.raises(ValueError, match='allow_pickle'):
    folder_index._read_cache(str(cache), root)
  assert not (tmp_path / 'ran').exists()


# --- Ports -----------------------------------------------------------------

_LISTENS = '0A'  # <net/tcp_states.h>


def addresses_listened_on(pid):
  """IP addresses, as the kernel lists them, of a process's open ports."""
  process = pathlib.Path('/proc') / str(pid)
  files = set()
  for file in (process / 'fd').iterdir():
    with contextlib.suppress(OSError):  # closed meanwhile
      files.add(os.readlink(file))
  found = set()
  for table in ('tcp', 'tcp6'):
    for row in (process / 'net' / table).read_text().splitlines()[1:]:
      fields = row.split()
      if fields[3] == _LISTENS and f'socket:[{fields[9]}]' in files:
        found.add(fields[1].partition(':')[0])
  return found


@pytest.mark.skipif(not os.path.exists('/proc/net/tcp'), reason='no /proc')
def test_processes_of_one_machine_listen_to_no_other(tmp_path):
  with cluster.Cluster(tmp_path / 'run', total_steps=10_000) as run:
    run.wait_for_steps(1)
    found = [addresses_listened_on(process.pid) for process in run.processes]
  # The coordinator's, 127.0.0.1: four bytes from the last to the first.
  assert any(address.endswith('0100007F') for address in found[0])
  # Gloo's are of the host's own name, whatever it means; none is of all.
  assert not (found[0] | found[1]) & {'0' * 8, '0' * 32}
