import importlib
import pathlib
import subprocess
import sys

import pytest
from absl import flags

from ijepa_jax import errors
from ijepa_jax.config import command, fields

ROOT = pathlib.Path(__file__).parent.parent
# Its numbers of tokens are set, so it is resolved at once.
CONFIG = '--config=configs/quickstart.py'


@pytest.fixture(autouse=True)
def _in_repository(monkeypatch):
  monkeypatch.chdir(ROOT)


def parse(*arguments):
  return command.parse(['main', *arguments])


def refusal(*arguments):
  with pytest.raises(errors.UserError) as caught:
    parse(*arguments)
  assert caught.value.exit_code == 2
  message = str(caught.value)
  assert '\n' not in message
  return message


@pytest.fixture
def config_file(tmp_path):
  """Writes a config file and returns its flag."""

  def write(body):
    file = tmp_path / 'mine.py'
    file.write_text(
      'from ijepa_jax.config import fields\n'
      'def get_config(variant=""):\n'
      '  config = fields.defaults()\n'
      '  config.mask.context_tokens = 70\n'
      f'  {body}\n'
      '  return config\n'
    )
    return f'--config={file}'

  return write


def test_fields_are_overridden_in_every_spelling():
  config, _ = parse(
    '--config.batch_size=128',
    CONFIG,  # the order does not matter
    '--config.optim.lr=1',
    '--config.mask.target_scale=(0.16, 0.2)',
    '--config.data.flip',
    '--noconfig.log.tensorboard',
    '--config.mesh.data',
    '-1',
    '--config.total_steps=none',
    '--config.data.path=',
  )
  assert config.batch_size == 128
  assert config.optim.lr == 1.0
  assert config.mask.target_scale == (0.16, 0.2)
  assert config.data.flip is True
  assert config.log.tensorboard is False
  assert config.mesh.data == -1
  assert config.total_steps is None
  assert config.data.path == ''


def test_last_of_two_values_wins():
  config, _ = parse(CONFIG, '--config.seed=1', '--config.seed=2')
  assert config.seed == 2


def test_parses_twice_in_one_process_without_memory():
  first, _ = parse(CONFIG, '--config.seed=1')
  second, _ = parse(CONFIG)
  assert (first.seed, second.seed) == (1, 0)


def test_config_is_resolved_and_locked():
  config, _ = parse(CONFIG)
  assert None not in (config.mask.target_tokens, config.predictor.heads)
  with pytest.raises(AttributeError):
    config.optim.rate = 1.0


def test_workdir_is_named_after_the_config_and_its_variant():
  assert parse(CONFIG)[1] == pathlib.Path('runs/quickstart')
  assert parse(f'{CONFIG}:paper')[1] == pathlib.Path('runs/quickstart_paper')
  assert parse(CONFIG, '--workdir=x/y')[1] == pathlib.Path('x/y')


def test_global_flags_count_as_parsed_for_grain():
  parse(CONFIG)
  assert flags.FLAGS.is_parsed()


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], '--config is missing; expected --config=FILE.py, one of configs/'),
    (['--config='], '--config is missing'),
    (['--config'], 'Missing value for flag --config'),
    (['--config=configs/vith41.py'], 'nearest: configs/vith14.py'),
    (['--config=vith14'], 'nearest: configs/vith14.py'),
    (['--config=configs'], '--config=configs: no such file'),
    (['configs/vith14.py'], "unexpected argument 'configs/vith14.py'"),
    ([f'{CONFIG}:papr'], "unknown variant 'papr'"),
    (['--config=ijepa_jax/errors.py'], 'expected a function get_config()'),
    ([CONFIG, '--config.batchsize=1'], 'nearest: batch_size'),
    ([CONFIG, '--config.lr=1'], "unknown field 'lr'; nearest: optim.lr"),
    ([CONFIG, '--config.optim=1'], "unknown field 'optim'"),
    ([CONFIG, '--batch_size=1'], 'nearest: --config.batch_size'),
    ([CONFIG, '--wrokdir=x'], 'unknown flag --wrokdir; nearest: --workdir'),
    ([CONFIG, '--noconfig.seed'], 'unknown flag --noconfig.seed'),
    ([CONFIG, '--noconfig.data.flip=true'], 'does not take an argument'),
    ([CONFIG, '--config.data.flip', 'false'], "unexpected argument 'false'"),
    ([CONFIG, '--config.batch_size=abc'], "batch_size='abc': expected a whole"),
    ([CONFIG, '--config.batch_size'], 'Missing value'),
    ([CONFIG, '--config.model.image_size=33'], 'nearest: 32 or 36'),
    ([CONFIG, '--flagfile=missing'], 'Unable to open flagfile'),
  ],
)
def test_bad_input_is_one_line_with_what_is_expected(arguments, message):
  assert message in refusal(*arguments)


@pytest.mark.parametrize(
  ('body', 'message'),
  [
    ('config.optim.lr = "high"', 'line 5: TypeError: Could not override'),
    ('config.optm.lr = 1', "line 5: AttributeError: 'optm' Did you mean"),
    ('config.optim.lrr = 1', "unknown field 'optim.lrr'; nearest: optim.lr"),
    ('config.batch_size = -1', 'batch_size=-1: expected a whole number'),
    ('1 / 0', 'mine.py, line 5: ZeroDivisionError: division by zero'),
    ('import nothing_like_it', 'line 5: ModuleNotFoundError'),
    ('config = (', 'mine.py, line 5: SyntaxError'),
    ('return {}', 'get_config() returned dict, expected the ConfigDict'),
    ('del config.mask', 'mask.num_targets: missing from the config'),
  ],
)
def test_mistake_in_a_config_file_is_one_line_with_its_place(
  config_file, body, message
):
  assert message in refusal(config_file(body))


def test_help_shows_every_field(capsys):
  with pytest.raises(SystemExit) as caught:
    parse('--help')
  assert caught.value.code == 0
  shown = capsys.readouterr().out
  assert all(f'--config.{name}=' in shown for name in fields.FIELDS)


def test_bad_input_ends_the_command_with_code_2_before_jax_is_imported():
  code = (
    'import sys\n'
    'from ijepa_jax import errors\n'
    'from ijepa_jax.config import command\n'
    'with errors.exit_cleanly():\n'
    '  command.parse(["main", "--config=configs/quickstart.py"])\n'
    '  assert "jax" not in sys.modules\n'
    '  command.parse(["main", "--config=configs/none.py"])\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=False
  )
  assert done.returncode == 2
  assert done.stderr.startswith('error: --config=configs/none.py: no such file')
  assert done.stderr.count('\n') == 1


@pytest.mark.parametrize(
  'module',
  ['benchmark.chart', 'convert', 'extract', 'prepare', 'report', 'watch'],
)
def test_an_argument_that_is_wrong_is_one_line(module, capsys):
  name = f'ijepa_jax.{module}'
  if module in ('prepare', 'report'):
    name += '.__main__'
  with pytest.raises(SystemExit) as end, errors.exit_cleanly():
    importlib.import_module(name).main([])
  assert end.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('error: the following arguments are required')
