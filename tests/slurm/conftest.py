"""Starts SLURM once for these tests; `make test-slurm` installs it."""

import pathlib
import tempfile

import daemons
import pytest


@pytest.fixture(scope='session')
def slurm():
  if missing := daemons.missing_programs():
    pytest.skip(f'{", ".join(missing)} not installed; see `make test-slurm`')
  # Not pytest's directory: paths of sockets must be short.
  with (
    tempfile.TemporaryDirectory(prefix='slurm_') as root,
    daemons.running(pathlib.Path(root)) as running,
  ):
    yield running
