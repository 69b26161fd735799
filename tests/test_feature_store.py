"""Features on disk: whole, found again, or a line that says what is wrong."""

import os
import resource

import numpy as np
import pytest

from ijepa_jax import errors
from ijepa_jax.evaluation import feature_store

MADE_OF = {'of': {'parameters': 'abc'}, 'wanted': {'layers': (-1,)}}
ROWS = np.arange(24, dtype=np.float32).reshape(4, 2, 3)


def write(store, made_of=MADE_OF, kept=(True, True, True, True), rows=ROWS):
  kept = np.array(kept)
  with store.writing(made_of) as writer:
    writer.add(rows[:3])
    writer.add(rows[3:])
    records = np.arange(10, 14)
    bad = [(f'record {k}', 'empty file') for k in records[~kept]]
    writer.finish(kept, records, {'color': records % 3}, bad)


def test_features_are_found_under_what_they_were_made_of(tmp_path):
  store = feature_store.Store(str(tmp_path))
  assert store.find(MADE_OF) is None
  write(store)
  found = feature_store.Store(str(tmp_path)).find(MADE_OF)
  np.testing.assert_array_equal(found.rows, ROWS)
  np.testing.assert_array_equal(found.labels['color'], [1, 2, 0, 1])
  assert store.find({**MADE_OF, 'of': {'parameters': 'abd'}}) is None


@pytest.mark.parametrize('copied', [1, 2, 1024])
def test_rows_of_broken_records_are_left_out(tmp_path, monkeypatch, copied):
  monkeypatch.setattr(feature_store, '_COPIED_ROWS', copied)
  store = feature_store.Store(str(tmp_path))
  write(store, kept=(False, True, False, True))
  found = store.find(MADE_OF)
  np.testing.assert_array_equal(found.rows, ROWS[[1, 3]])
  assert found.records.tolist() == [11, 13]
  assert found.bad == [('record 10', 'empty file'), ('record 12', 'empty file')]
  assert os.path.getsize(found.rows.filename) == 2 * 6 * 4


def test_of_two_that_make_the_same_the_first_one_stays(tmp_path):
  store = feature_store.Store(str(tmp_path))
  with store.writing(MADE_OF) as writer:
    writer.add(ROWS)
    write(store)
    writer.finish(np.ones(4, bool), np.arange(4), {}, [])
  assert store.find(MADE_OF).records.tolist() == [10, 11, 12, 13]
  assert len(list(tmp_path.iterdir())) == 1


def test_a_disk_that_takes_no_more_is_one_line_and_leaves_nothing(tmp_path):
  store = feature_store.Store(str(tmp_path))
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
  try:
    with pytest.raises(errors.StorageError, match=r'--cache: .*too large'):
      write(store)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert not list(tmp_path.iterdir())
  assert store.find(MADE_OF) is None


@pytest.mark.parametrize(
  ('file', 'content'),
  [
    ('meta.json', b'{'),
    ('meta.json', None),
    ('labels.npz', b''),
    ('labels.npz', b'PK'),
    ('labels.npz', None),
    ('rows', b'short'),
    ('rows', b''),
  ],
)
def test_damaged_features_are_one_line(tmp_path, file, content):
  store = feature_store.Store(str(tmp_path))
  write(store)
  (folder,) = tmp_path.iterdir()
  if content is None:
    (folder / file).unlink()
  else:
    (folder / file).write_bytes(content)
  with pytest.raises(
    errors.UserError, match=f'--cache: {folder} cannot be read'
  ):
    store.find(MADE_OF)


def begin(folder, age):
  """Rows to which nobody has written for so many hours."""
  folder.mkdir()
  rows = folder / 'rows'
  rows.write_bytes(b'half')
  written = rows.stat().st_mtime - age * 3600
  os.utime(rows, (written, written))


def names(path):
  return {entry.name for entry in path.iterdir()}


def test_what_a_killed_process_began_is_removed_after_a_day(tmp_path):
  store = feature_store.Store(str(tmp_path))
  with store.writing(MADE_OF) as writer:
    (made,) = names(tmp_path)
    writer.add(ROWS)
    writer.finish(np.ones(4, bool), np.arange(4), {}, [])
  kept = names(tmp_path)
  old, new = made[:-2] + '-1', made[:-2] + '-2'
  begin(tmp_path / old, 25)
  begin(tmp_path / new, 1)
  (tmp_path / f'{made}-beginning').mkdir()
  feature_store.Store(str(tmp_path))
  assert names(tmp_path) == {*kept, new, f'{made}-beginning'}


def test_what_others_keep_in_the_folder_stays(tmp_path):
  for name in ('.DS_Store', '.gitignore', '.making-notes'):
    (tmp_path / name).touch()
  begin(tmp_path / '.theirs', 1000)
  write(feature_store.Store(str(tmp_path)))
  assert (tmp_path / '.theirs' / 'rows').exists()
  assert len(names(tmp_path)) == 5


def test_a_temporary_store_goes_when_it_is_closed():
  store = feature_store.Store(None)
  write(store)
  store.close()
  assert not os.path.exists(store.folder)
