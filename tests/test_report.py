"""The report, as text and in a real browser."""

import html
import json
import os
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest
import run_dirs

from ijepa_jax.report import __main__ as report
from ijepa_jax.report import charts, strip

BROWSER = shutil.which('chromium') or shutil.which('chromium-browser')
EVIL = '<script>document.title="taken over"</script>'


def make(*runs: pathlib.Path, out: pathlib.Path) -> str:
  report.main([*map(str, runs), f'--out={out}'])
  return out.read_text()


class TestReport:
  def test_shows_everything_of_a_run(self, tmp_path):
    run = run_dirs.make(tmp_path / 'run')
    report.main([str(run)])
    page = (run / 'report.html').read_text()
    for text in (
      'finished',
      'No health warning',
      'RankMe by block',
      'Probes of “class”',
      '61.2 %',  # evaluation, with its interval
      '58.0 % to 64.0 %',
      'Masks of the first batch',
      'PCA',
      'explained 0.4321',
      'python -m pca',
      "python -m ijepa_jax.main '--workdir=a b'",
      'XLA_FLAGS',
      'optim.lr',
      '12.5 %',  # chance
    ):
      assert text in html.unescape(page).replace('\xa0', ' '), text
    assert page.count('data:image/png;base64,') == 2
    assert 'step 900' in page
    assert not list(run.glob('*.tmp'))

  def test_marks_of_a_result_lie_where_its_values_say(self):
    drawn = strip.draw(run_dirs.result(value=0.5, low=0.4, high=0.6, init=None))
    assert re.search(r'<circle cx="100.0"', drawn)
    low, high = map(float, re.findall(r'x[12]="([\d.]+)"', drawn)[2:4])
    assert (low + high) / 2 == pytest.approx(100)
    assert high - low == pytest.approx(0.2 * 190)
    assert 'base pixels' in drawn
    assert 'base init' not in drawn

  def test_nothing_is_loaded_from_outside(self, tmp_path):
    run = run_dirs.make(tmp_path / 'run')
    page = make(run, out=tmp_path / 'r.html')
    links = re.findall(r'(?:src|href|action)="([^"]*)"', page)
    assert links
    assert all(link.startswith(('#', 'data:image/png')) for link in links)
    assert 'url(' not in page
    assert '@import' not in page
    assert "default-src 'none'" in page

  def test_text_is_never_markup(self, tmp_path):
    run = run_dirs.make(tmp_path / EVIL.replace('/', ''), label=EVIL)
    config = json.loads((run / 'config.json').read_text())
    config['data'] = {'path': '"><img src=x onerror=alert(1)>'}
    (run / 'config.json').write_text(json.dumps(config))
    page = make(run, out=tmp_path / 'r.html')
    assert '<script>document' not in page
    assert '<img src=x' not in page
    assert page.count('<script>') == 1

  def test_while_a_run_writes(self, tmp_path):
    run = run_dirs.make(tmp_path / 'run')
    rows = (run / 'metrics.jsonl').read_bytes().split(b'\n')
    (run / 'metrics.jsonl').write_bytes(b'\n'.join(rows[:20]) + b'\n{"step"')
    (run / 'lock').write_text('{"beat": 3}')
    page = make(run, out=tmp_path / 'r.html')
    assert '380 of 900' in page
    assert '>training<' in page

  def test_before_the_first_row(self, tmp_path):
    run = tmp_path / 'run'
    run.mkdir()
    (run / 'config.json').write_text('{"model": {"variant": "vit_micro"}}')
    page = make(run, out=tmp_path / 'r.html')
    assert 'No health warning in 0 rows' in page

  def test_collapse_is_said_with_its_step(self, tmp_path):
    run = run_dirs.make(tmp_path / 'run')
    with open(run / 'metrics.jsonl', 'a') as file:
      file.write('{"step": 920, "time": 1.8e9, "health/rankme": 1.1}\n')
    page = make(run, out=tmp_path / 'r.html')
    assert 'step 920: </b>RankMe fell from 19.0 to 1.1' in page

  def test_runs_side_by_side(self, tmp_path):
    a = run_dirs.make(tmp_path / 'a' / 'run', lr=1e-3)
    b = run_dirs.make(tmp_path / 'b' / 'run', lr=2e-3)
    page = html.unescape(make(a, b, out=tmp_path / 'r.html'))
    for run in (a, b):  # of the same name
      assert f'<th scope="col">{run}</th>' in page
    differ = page.split('Fields that differ</caption>')[1]
    differ = differ.split('</table>')[0]
    assert 'optim.lr' in differ
    assert 'seed' not in differ
    assert 'Evaluations side by side' in page
    loss = re.search(r'data-chart="(.*?)">', page.split('<h3>Loss</h3>')[1])
    assert loss
    assert [s['style'] for s in json.loads(loss[1])['series']] == ['c0', 'c1']

  def test_whose_chance_is_said_where_runs_have_different_ones(self, tmp_path):
    a, b = (run_dirs.make(tmp_path / name) for name in 'ab')
    assert 'chance, ' not in make(a, b, out=tmp_path / 'r.html')
    rows = (b / 'metrics.jsonl').read_text()
    (b / 'metrics.jsonl').write_text(
      rows.replace('"chance/class": 0.125', '"chance/class": 0.25')
    )
    page = make(a, b, out=tmp_path / 'r.html').replace('\xa0', ' ')
    assert 'chance, a <b>12.5 %</b>' in page
    assert 'chance, b <b>25.0 %</b>' in page

  @pytest.mark.parametrize(
    ('argument', 'says'),
    [('gone', 'no such directory'), ('.', 'holds no run')],
  )
  def test_no_run_is_one_line(self, tmp_path, capsys, argument, says):
    with pytest.raises(SystemExit) as end:
      report.main([str(tmp_path / argument)])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count('\n') == 1

  def test_a_picture_that_is_gone_is_said(self, tmp_path):
    run = run_dirs.make(tmp_path / 'run')
    (run / 'visualize' / 'pca.png').unlink()
    page = make(run, out=tmp_path / 'r.html')
    assert 'pca.png is not there' in page

  def test_commands_that_it_suggests_can_be_pasted(self, tmp_path):
    run = run_dirs.make(tmp_path / 'my run')
    shutil.rmtree(run / 'visualize')
    page = html.unescape(make(run, out=tmp_path / 'r.html'))
    assert f"visualize '--checkpoint={run}' --images=DIR" in page

  def test_where_it_cannot_be_written(self, tmp_path, capsys):
    run = run_dirs.make(tmp_path / 'run')
    with pytest.raises(SystemExit) as end:
      make(run, out=tmp_path / 'gone' / 'r.html')
    assert end.value.code == 74
    assert 'r.html' in capsys.readouterr().err

  def test_a_damaged_file_is_named(self, tmp_path, capsys):
    run = run_dirs.make(tmp_path / 'run')
    (run / 'evaluation' / 'results.json').write_text('{"results": [')
    with pytest.raises(SystemExit):
      report.main([str(run)])
    assert 'results.json is not JSON' in capsys.readouterr().err


class TestCharts:
  def test_thinning_keeps_the_extremes(self):
    values = np.random.default_rng(0).normal(size=5_000)
    values[1234], values[4321] = 50, -50
    points = list(enumerate(values.tolist()))
    thin = charts.thin(points, most=300)
    assert len(thin) <= 300
    assert {points[0], points[1234], points[4321], points[-1]} <= set(thin)
    assert list(thin) == sorted(thin)

  @pytest.mark.parametrize(
    ('low', 'high'), [(0, 1), (0.0312, 0.0313), (-3, 7), (1e-6, 2e-3), (5, 1e5)]
  )
  def test_ticks_are_few_and_round(self, low, high):
    ticks = charts._ticks(low, high)
    assert 3 <= len(ticks) <= 7
    size = ticks[1] - ticks[0]
    assert ticks[0] <= low + 1e-6 * size
    assert float(f'{size:.2g}') == pytest.approx(size)

  @pytest.mark.parametrize(
    'points', [[(1, 0.5), (2, 0.6)], [(0, 0.99991), (9, 0.99994)]]
  )
  def test_no_two_ticks_of_an_axis_have_the_same_text(self, points):
    drawn = charts.draw(charts.Chart('x', '', [charts.Series('x', points)]))
    ticks = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)', drawn)
    # Values stand beside the plot, steps below it.
    values = [text for x, _, text in ticks if float(x) < 52]
    steps = [text for x, _, text in ticks if float(x) >= 52]
    for texts in (values, steps):
      assert len(texts) >= 2
      assert len(set(texts)) == len(texts), texts

  def test_a_value_lies_where_the_scale_says(self):
    chart = charts.Chart(
      'x', '', [charts.Series('x', [(0, 0.0), (10, 100.0)])],
      bands=[charts.Band('below', [(0, 50.0), (10, 50.0)])],
    )  # fmt: skip
    drawn = html.unescape(charts.draw(chart))
    data = json.loads(re.search(r'data-chart="(.*?)">', drawn)[1])
    (_, _, x0, y0), (_, _, x1, y1) = data['series'][0]['points']
    assert x0 < x1
    assert y0 > y1  # downwards
    top = float(re.search(r'class="band"', drawn) and y0 + (y1 - y0) / 2)
    assert f'{x0},{top:.1f}' in drawn


def browse(page: pathlib.Path, width: int, *more: str) -> str:
  """What Chromium makes of a page; skips where there is none."""
  if BROWSER is None:
    pytest.skip('chromium is not installed')
  result = subprocess.run(
    [
      BROWSER,
      '--headless',
      '--no-sandbox',
      '--disable-gpu',
      '--disable-quic',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
      f'--user-data-dir={page.parent / "profile"}',
      f'--window-size={width},900',
      '--virtual-time-budget=2000',
      *more,
      page.as_uri(),
    ],
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
    env=os.environ | {'HOME': str(page.parent)},
  )
  return result.stdout


class TestInABrowser:
  def test_scripts_of_the_page_run_and_no_others(self, tmp_path):
    run = run_dirs.make(tmp_path / 'run', label=EVIL)
    page = tmp_path / 'r.html'
    text = make(run, out=page)
    # Even if escaping failed, the policy would stop it.
    page.write_text(text.replace('</main>', f'{EVIL}</main>'))
    seen = browse(page, 1280, '--dump-dom')
    assert '<title>run – I-JEPA</title>' in seen
    assert re.search(r'<button type="button" id="theme">(Dark|Light)<', seen)

  def test_keys_read_values_and_the_theme_changes(self, tmp_path):
    page = tmp_path / 'r.html'
    text = make(run_dirs.make(tmp_path / 'run'), out=page)
    probe = """<script>
      const svg = document.querySelector('svg[data-chart]');
      svg.focus();
      for (const key of ['End', 'ArrowLeft'])
        svg.dispatchEvent(new KeyboardEvent('keydown', {key}));
      document.getElementById('theme').click();
      const focusable = [...document.querySelectorAll('a,button,[tabindex]')];
      document.body.dataset.first = focusable[0].textContent;
      document.body.dataset.focused = document.activeElement === svg;
      document.body.dataset.inner = innerWidth;
      document.body.dataset.scroll = document.documentElement.scrollWidth;
    </script></body>"""
    policy = re.search(r'<meta http-equiv.*?>', text)
    assert policy
    text = text.replace(policy[0], '').replace('</body>', probe)
    page.write_text(text)
    seen = browse(page, 390, '--dump-dom')
    reading = re.search(r'<output class="reading left">(.*?)</output>', seen)
    assert reading
    assert '<span>step 880</span>' in reading[1]
    assert 'now' in reading[1]
    assert 'data-theme="dark"' in seen
    assert 'data-first="Skip to the content"' in seen
    assert 'data-focused="true"' in seen
    # Nothing sticks out of a phone's screen.
    inner, scroll = (
      int(re.search(rf'data-{name}="(\d+)"', seen)[1])
      for name in ('inner', 'scroll')
    )
    assert scroll <= inner <= 500  # Chromium's narrowest window
