"""`benchmarks/interop.py`, and the model that stands in for the authors'."""

import json

import cases
import numpy as np
import parity_golden
import pytest
import small_weights
from peers import interop_peers, interop_reference, torch

from ijepa_jax.interop import writing

# It imports what only `peers` may skip for.
interop = pytest.importorskip('interop')


def exit_code(*arguments):
  with pytest.raises(SystemExit) as caught:
    interop.main([str(x) for x in arguments])
  return int(caught.value.code)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
  """One small size and small images."""
  classes = {'tiny, 16': interop.CLASSES['tiny, 16']}
  monkeypatch.setattr(interop, 'CLASSES', classes)
  monkeypatch.setattr(interop, '_SIDES', {'tiny, 16': 48})
  monkeypatch.setattr(interop, '_IMAGES', ((48, 48), (80, 80), (48, 64)))


def test_every_format_agrees_with_its_peer(tmp_path, capsys):
  assert exit_code('--json', tmp_path / 'a.json') == 0
  printed = capsys.readouterr().out
  result = json.loads((tmp_path / 'a.json').read_text())
  rows = result['rows']
  assert [row['format'] for row in rows if row['image'] == '48x48'] == list(
    writing.FORMATS
  )
  assert f'{len(rows)} rows, 0 failed' in printed
  assert {'ijepa_jax', 'torch', 'timm'} <= result['versions'].keys()


@pytest.fixture
def one_format(monkeypatch):
  peers = {'timm': interop_peers.PEERS['timm']}
  monkeypatch.setattr(interop, 'PEERS', peers)


@pytest.mark.usefixtures('one_format')
def test_a_difference_above_the_tolerance_fails(monkeypatch, capsys):
  monkeypatch.setattr(interop, 'TOLERANCE', 1e-12)
  assert exit_code() == 1
  assert 'FAIL' in capsys.readouterr().out


@pytest.mark.usefixtures('one_format')
def test_one_changed_bit_fails(monkeypatch, capsys):
  right = writing.write

  def wrong(held, path, format):
    bias = held.target['trunk.norm.bias'].copy()
    bias[0] = np.nextafter(bias[0], np.float32(1))
    target = held.target.replace('trunk.norm.bias', bias)
    if format == 'timm':
      held = interop.dataclasses.replace(held, target=target, context=target)
    right(held, path, format)

  monkeypatch.setattr(writing, 'write', wrong)
  assert exit_code() == 1
  assert '44 of 46  FAIL' in capsys.readouterr().out


def test_nan_never_passes():
  assert not interop.Row('tiny', 'timm', '48x48', np.nan, 0.0).passed
  rows = [interop.Row('tiny', 'timm', '48x48', x, x) for x in (0, np.nan, 0)]
  assert not interop.worst('timm', rows).passed


def test_the_stand_in_computes_what_the_authors_code_did():
  folder = cases.parity_files.Folder(cases.GOLDEN)
  golden = folder.read(cases.GOLDEN / 'model_micro.npz')
  model = interop_reference.Encoder(small_weights.golden().architecture)
  model.load_state_dict(
    {
      k: torch.from_numpy(x)
      for k, x in golden.section('target_encoder').items()
    }
  )
  images = torch.from_numpy(parity_golden.normalise(golden['images_u8']))
  with torch.no_grad():
    features = model(images)
  assert cases.difference(features, golden['target_full']) < 1e-5
