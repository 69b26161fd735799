"""What is installed, imported and promised about the repository itself."""

import ast
import configparser
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ijepa_jax

ROOT = pathlib.Path(__file__).parents[1]
OUR_CODE = ('ijepa_jax', 'configs', 'launch', 'benchmarks')

# Needed without an import of ours; the reason stands in requirements.txt.
INDIRECT = {'importlib-resources'}
# Of `make test-interop`; the Makefile says why.
WITHOUT_DEPENDENCIES = {'timm', 'torchvision'}


def _requirements() -> list[Requirement]:
  lines = (ROOT / 'requirements.txt').read_text().splitlines()
  return [
    Requirement(line.split('#')[0])
    for line in lines
    if line.split('#')[0].strip()
  ]


def _extras() -> dict[str, list[Requirement]]:
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  return {
    name: [Requirement(line) for line in lines.split('\n') if line]
    for name, lines in setup['options.extras_require'].items()
  }


def _names(requirements: list[Requirement]) -> set[str]:
  return {canonicalize_name(requirement.name) for requirement in requirements}


def _python_files(*folders: str) -> list[pathlib.Path]:
  return [path for f in folders for path in sorted((ROOT / f).rglob('*.py'))]


def _imported_distributions(*folders: str) -> dict[str, str]:
  """Third-party distributions that our files import, with one such file."""
  distributions = importlib.metadata.packages_distributions()
  # Files in these folders import each other by name.
  neighbours = _python_files('tests', 'benchmarks')
  ours = {*OUR_CODE, 'tests', *(path.stem for path in neighbours)}
  found = {}
  for path in _python_files(*folders):
    for node in ast.walk(ast.parse(path.read_text())):
      modules = []
      if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom) and node.level == 0:
        modules = [node.module or '']
      for module in modules:
        top = module.split('.')[0]
        if top in sys.stdlib_module_names or top in ours:
          continue
        # A package that is not installed is taken by its own name.
        name = distributions.get(top, [top])[0]
        found[canonicalize_name(name)] = str(path.relative_to(ROOT))
  return found


@pytest.mark.parametrize('requirement', _requirements(), ids=lambda r: r.name)
def test_requirement_is_bounded_and_tested_inside_its_bounds(requirement):
  operators = {clause.operator for clause in requirement.specifier}
  assert operators == {'>=', '<'}
  installed = importlib.metadata.version(requirement.name)
  assert requirement.specifier.contains(installed, prereleases=True), (
    f'{requirement} is declared, and these tests run with {installed}: '
    'make the environment anew, or test and move the bound'
  )


def test_requirements_and_extras_name_nothing_twice():
  names = [r.name for r in _requirements()]
  names += [r.name for n in ('test', 'dev') for r in _extras()[n]]
  assert sorted(names) == sorted(set(names))


def test_accelerator_extras_exist_in_jax():
  offered = importlib.metadata.metadata('jax').get_all('Provides-Extra')
  for name in ('cuda12', 'cuda13', 'tpu', 'k8s'):
    (requirement,) = _extras()[name]
    assert requirement.name == 'jax'
    assert requirement.extras <= set(offered)


def _undeclared(folder: str, extras: tuple[str, ...]) -> dict[str, str]:
  """Imports of a folder's files that nothing would install."""
  declared = _requirements() + [r for name in extras for r in _extras()[name]]
  allowed = _names(declared)
  if 'interop' in extras:
    allowed |= WITHOUT_DEPENDENCIES
  found = _imported_distributions(folder)
  return {name: path for name, path in found.items() if name not in allowed}


@pytest.mark.parametrize(
  ('folder', 'extras'),
  [
    (
      'ijepa_jax',
      ('wandb', 'parquet', 'torch', 'fast', 'detect', 'visualize'),
    ),
    ('configs', ()),
    ('launch', ()),
    ('benchmarks', ('torch', 'interop')),
    ('tests', ('test', 'interop')),
  ],
)
def test_every_import_is_declared(folder, extras):
  assert _undeclared(folder, extras) == {}


def test_every_requirement_is_imported():
  imported = set(_imported_distributions(*OUR_CODE))
  assert _names(_requirements()) - imported == INDIRECT


def test_importing_the_package_is_light():
  code = 'import json, sys, ijepa_jax; print(json.dumps(list(sys.modules)))'
  output = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, check=True, capture_output=True
  ).stdout
  loaded = set(json.loads(output))
  assert 'ijepa_jax' in loaded
  assert not loaded & {'jax', 'flax', 'numpy', 'tensorflow', 'torch', 'PIL'}


def test_every_folder_of_the_package_is_installed():
  # `find:` passes over a folder that has no __init__.py, and says nothing.
  folders = {path.parent for path in _python_files('ijepa_jax')}
  assert ROOT / 'ijepa_jax' in folders
  assert [f for f in folders if not (f / '__init__.py').exists()] == []


def test_files_that_are_no_python_are_installed():
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  declared = {
    path
    for package, pattern in setup['options.package_data'].items()
    for path in (ROOT / package.replace('.', '/')).glob(pattern)
  }
  there = {
    path
    for path in (ROOT / 'ijepa_jax').rglob('*')
    if path.is_file() and path.suffix not in ('.py', '.pyc')
  }
  assert there == declared


def test_files_fit_in_a_readers_head():
  files = _python_files(*OUR_CODE)
  assert files
  lengths = {p: len(p.read_text().splitlines()) for p in files}
  assert {p.name: n for p, n in lengths.items() if n > 400} == {}


def test_no_file_is_named_utils():
  assert [p for p in _python_files(*OUR_CODE) if p.stem == 'utils'] == []


def test_citation_names_this_version():
  citation = (ROOT / 'CITATION.cff').read_text()
  (version,) = re.findall(r'(?m)^version: (\S+)$', citation)
  assert version == ijepa_jax.__version__


@pytest.mark.skipif(not shutil.which('make'), reason='make is not installed')
@pytest.mark.parametrize(
  ('script', 'said'),
  [('echo 3.10', 'is 3.10'), ('exit 1', 'is not a Python')],
)
def test_make_refuses_another_python_in_one_line(tmp_path, script, said):
  python = tmp_path / 'python3'
  python.write_text(f'#!/bin/sh\n{script}\n')
  python.chmod(0o755)
  environment = tmp_path / 'environment'
  result = subprocess.run(
    ['make', '-s', 'test', f'PYTHON={python}', f'VENV={environment}'],
    cwd=ROOT,
    env={'PATH': os.environ['PATH']},
    capture_output=True,
    text=True,
  )
  assert result.returncode != 0
  # make adds a line of its own: "*** [Makefile:...] Error 2".
  line, _ = result.stderr.splitlines()
  assert line.startswith('error: Python 3.11 or 3.12 is needed')
  assert said in line
  assert not environment.exists()


def test_the_tests_see_eight_simulated_devices():
  if jax.default_backend() != 'cpu':
    pytest.skip('on an accelerator')
  assert jax.device_count() == 8
