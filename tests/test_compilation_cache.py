"""Compiled programs outlive the process, also those of a resumed run."""

import os
import shutil
import stat
import subprocess

import jax
import pytest
import tiny

from ijepa_jax import compilation_cache, errors, user_cache


@pytest.fixture
def no_cache():
  """JAX without the directory that the tests have, for as long as a test."""
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', None)
  yield
  jax.config.update('jax_compilation_cache_dir', before)


def used():
  return jax.config.jax_compilation_cache_dir


def test_a_resumed_run_compiles_no_step(tmp_path):
  cache, workdir = tmp_path / 'cache', tmp_path / 'run'
  environment = tiny.environment()
  del environment['JAX_COMPILATION_CACHE_DIR']
  environment['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'

  def programs():
    subprocess.run(
      tiny.command(workdir, compilation_cache=cache),
      env=environment,
      capture_output=True,
      timeout=300,
      check=True,
    )
    return {path.name for path in cache.glob('jit_step-*-cache')}

  first = programs()
  assert len(first) == 1
  assert stat.S_IMODE(cache.stat().st_mode) == 0o700
  shutil.rmtree(workdir / 'checkpoints' / '6')
  assert programs() == first  # another program would be another file
  assert (workdir / 'checkpoints' / '6').is_dir()


@pytest.mark.usefixtures('no_cache')
def test_auto_is_for_accelerators(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  compilation_cache.enable('auto')
  assert used() is None
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  compilation_cache.enable('off')
  assert used() is None
  compilation_cache.enable('auto')
  assert used() == user_cache.folder('compiled')
  assert os.path.isdir(used())


@pytest.mark.usefixtures('no_cache')
def test_a_directory_that_cannot_be_made(monkeypatch, tmp_path):
  file = tmp_path / 'file'
  file.touch()
  with pytest.raises(errors.UserError, match=r'compilation_cache=.*Not a dir'):
    compilation_cache.enable(str(file / 'cache'))
  monkeypatch.setenv('XDG_CACHE_HOME', str(file))
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  with pytest.warns(UserWarning, match='compiled programs are not kept'):
    compilation_cache.enable('auto')
  assert used() is None


def test_the_environment_wins(tmp_path):
  before = used()
  compilation_cache.enable(str(tmp_path / 'cache'))
  assert used() == before
  assert not (tmp_path / 'cache').exists()
