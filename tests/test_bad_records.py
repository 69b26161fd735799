"""The list of broken records, and when it stops a run."""

import json

import numpy as np
import pytest

from ijepa_jax import errors
from ijepa_jax.data import bad_records, transforms


class Broken:
  """A source of 5,000 records that no one can read."""

  name = 'broken'

  def __len__(self):
    return 5000

  def __getitem__(self, index):
    raise OSError('gone')

  def record_id(self, index):
    return f'image {index}'


def batch(record=10, bad=0, size=8):
  return {'record': np.full(size, record), 'bad': np.full(size, bad)}


def make(path, max_share=0.01):
  said = []
  return bad_records.BadRecords(path, Broken(), max_share, said.append), said


def test_a_record_is_named_once_with_its_reason(tmp_path):
  path = tmp_path / 'bad_records.jsonl'
  ledger, said = make(path)
  ledger.check(batch(bad=2))
  ledger.check(batch(bad=1))
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert [row['id'] for row in rows] == ['image 8', 'image 9']
  assert {row['reason'] for row in rows} == {'gone'}
  assert len(said) == 2


def test_what_a_killed_run_listed_is_not_held_against_the_next(tmp_path):
  path = tmp_path / 'bad_records.jsonl'
  rows = [json.dumps({'record': i}) + '\n' for i in range(30)]
  path.write_text(''.join(rows) + '{"rec')
  ledger, said = make(path)
  ledger.check(batch())
  ledger.check(batch(record=5, bad=2))
  assert said == []


def test_more_than_the_share_stops_the_run(tmp_path):
  ledger, _ = make(tmp_path / 'bad_records.jsonl', max_share=0.002)
  ledger.check(batch(bad=2))
  with pytest.raises(errors.DataError, match=r'data\.max_bad_share'):
    ledger.check(batch(record=50, bad=1))


def test_the_share_is_of_all_processes(tmp_path):
  ledger = bad_records.BadRecords(
    tmp_path / 'bad_records_1.jsonl',
    Broken(),
    0.01,
    lambda _: None,
    parts=4,
    count=lambda _: 21,
  )
  for record in range(100, 1900, 8):  # 4 * 8 * 225 > 5,000 images seen
    ledger.check(batch(record=record))
  ledger.check(batch(bad=1))  # 21 on all processes, of 5,000
  small = bad_records.BadRecords(
    tmp_path / 'bad_records_2.jsonl',
    Broken(),
    0.01,
    lambda _: None,
    count=lambda _: 21,
  )
  with pytest.raises(errors.DataError, match='21 broken records'):
    small.check(batch(bad=1))


def test_a_record_without_readable_neighbours_stops_the_run(tmp_path):
  ledger, _ = make(tmp_path / 'bad_records.jsonl')
  with pytest.raises(errors.DataError, match='image 10'):
    ledger.check(batch(bad=transforms.GIVEN_UP))
