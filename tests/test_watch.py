"""The dashboard in the terminal."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
import run_dirs
import tiny
from rich.console import Console

from ijepa_jax import run_files, watch


def shown(run, width=100):
  console = Console(file=io.StringIO(), width=width)
  state = run_files.read(run)
  console.print(watch.frame(state, run_files.Pulse(run), width))
  return console.file.getvalue()


class TestFrame:
  def test_shows_everything(self, tmp_path):
    text = shown(run_dirs.make(tmp_path / 'run'))
    for part in (
      'finished',
      'step 900 of 900',
      '300 images/s',
      'last checkpoint 900',
      'rankme',
      'below 4.8',
      'class k-NN',
      '60.0',
      'no health warning',
    ):
      assert part in text

  def test_a_running_run_has_time_left(self, tmp_path):
    run = run_dirs.make(tmp_path / 'run', steps=600)
    (run / 'lock').write_text('{"beat": 1}')
    text = shown(run)
    assert 'running' in text
    assert '5 m 00 s left' in text  # a step takes a second

  def test_a_run_that_no_longer_counts(self, tmp_path):
    run = run_dirs.make(tmp_path / 'run', steps=600)
    (run / 'lock').write_text('{"beat": 1}')
    os.utime(run / 'lock', (time.time() - 3600, time.time() - 3600))
    text = shown(run)
    assert 'no sign of life' in text
    assert '1 h 00 m ago' in text
    assert 'left' not in text

  def test_warnings_and_labels_are_plain_text(self, tmp_path):
    run = run_dirs.make(tmp_path / 'run', label='[red]x[/red]')
    with open(run / 'metrics.jsonl', 'a') as file:
      file.write('{"step": 920, "time": 1.8e9, "health/rankme": 1.1}\n')
    text = shown(run, width=160)
    assert '[red]x[/red] k-NN' in text
    assert 'step 920: RankMe fell' in text

  @pytest.mark.parametrize('width', [40, 80, 160])
  def test_fits_the_terminal(self, tmp_path, width):
    text = shown(run_dirs.make(tmp_path / 'run'), width)
    assert {len(line) for line in text.splitlines()} == {width}

  def test_before_the_first_row(self, tmp_path):
    (tmp_path / 'config.json').write_text('{}')
    assert 'no row yet' in shown(tmp_path)


class TestPulse:
  def test_a_count_that_moves_is_life(self, tmp_path):
    run = run_dirs.make(tmp_path / 'run', steps=600)
    lock = run / 'lock'
    lock.write_text('{"beat": 1}')
    os.utime(lock, (0, 0))
    pulse, state = run_files.Pulse(run), run_files.read(run)
    assert pulse.look(state) == 'silent'
    # The clock of another machine is years behind; the count tells.
    lock.write_text('{"beat": 2}')
    os.utime(lock, (0, 0))
    assert pulse.look(state) == 'running'
    lock.write_text('')
    assert pulse.look(state) == 'stopped'


def test_sparkline():
  assert watch.sparkline([0, 1, 2, 7], 4) == '▁▂▃█'
  assert watch.sparkline(list(range(100)), 2) == '▁█'
  assert watch.sparkline([3, 3], 9) == '▁▁'


def command(*args):
  return [sys.executable, '-m', 'ijepa_jax.watch', *args]


@pytest.mark.parametrize('once', [('--once',), ()])  # no terminal: likewise
def test_once_is_one_frame_and_writes_nothing(tmp_path, once):
  run = run_dirs.make(tmp_path / 'run')
  before = sorted(run.rglob('*'))
  result = subprocess.run(
    command(*once, str(run)),
    env=tiny.environment(),
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  )
  assert 'step 900 of 900' in result.stdout
  assert '\x1b' not in result.stdout
  assert sorted(run.rglob('*')) == before
  imports = subprocess.run(
    [sys.executable, '-c', 'import sys, ijepa_jax.watch, ijepa_jax.report.page;'
     'print("jax" in sys.modules, "matplotlib" in sys.modules)'],
    env=tiny.environment(), capture_output=True, text=True, check=True,
  )  # fmt: skip
  assert imports.stdout.split() == ['False', 'False']


def test_a_missing_run_is_one_line(tmp_path, capsys):
  with pytest.raises(SystemExit) as end:
    watch.main([str(tmp_path / 'gone')])
  assert end.value.code == 2
  assert capsys.readouterr().err.count('\n') == 1


def test_follows_a_run_in_a_terminal_until_ctrl_c(tmp_path):
  run = run_dirs.make(tmp_path / 'run', steps=600)
  (run / 'lock').write_text('{"beat": 1}')
  master, slave = pty.openpty()
  process = subprocess.Popen(
    command(str(run), '--seconds=0.2'),
    env=tiny.environment() | {'TERM': 'xterm', 'COLUMNS': '90', 'LINES': '40'},
    stdout=slave,
    stderr=slave,
    # Also where the tests' own shell ignores Ctrl-C.
    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
  )

  def read():
    if select.select([master], [], [], 0.2)[0]:
      return os.read(master, 65536).decode(errors='replace')
    return ''

  def wait_for(text):
    seen, end = '', time.monotonic() + 60
    while text not in seen:
      assert time.monotonic() < end, seen
      seen += read()

  wait_for('step 600 of 900')
  with open(run / 'metrics.jsonl', 'a') as file:
    row = {'step': 620, 'time': run_dirs.TIME + 620, 'train/loss': 0.1}
    file.write(json.dumps(row) + '\n')
  wait_for('step 620 of 900')
  process.send_signal(signal.SIGINT)
  end = time.monotonic() + 30
  while process.poll() is None:  # and reads on: a full terminal blocks it
    assert time.monotonic() < end
    read()
  assert process.returncode == 0
  os.close(master)
  os.close(slave)
