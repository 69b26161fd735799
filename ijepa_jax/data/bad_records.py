"""Broken records: named once, counted, and too many of them stop the run."""

import json
import pathlib
from collections.abc import Callable

import numpy as np

from ijepa_jax import errors
from ijepa_jax.data import decode, transforms
from ijepa_jax.data.sources import Source

# A share says nothing about fewer records than this.
_MIN_SEEN = 1000


class BadRecords:
  """Keeps `bad_records.jsonl` of one process."""

  def __init__(
    self,
    path: pathlib.Path,
    source: Source,
    max_share: float,
    log: Callable[[str], None],
    *,
    parts: int = 1,
    count: Callable[[int], int] | None = None,
  ):
    """Continues the list of an earlier start of the same run.

    What is in the list is not named again. Counted, for the share, is only
    what this start meets itself: a list may know of records that lie behind
    the checkpoint a killed run resumes from.

    Args:
      path: the file to append to.
      source: where the records come from.
      max_share: `data.max_bad_share`.
      log: tells the user.
      parts: of a batch on all processes, one of which this process sees.
      count: takes a broken record and returns how many different ones all
        processes have met; None: this one is alone.
    """
    self._path, self._source = path, source
    self._max_share, self._log = max_share, log
    self._parts = parts
    self._count = count or (lambda record: len(self._met))
    self._seen = self._broken = 0  # on all processes
    self._met: set[int] = set()
    self._named: set[int] = set()
    if path.exists():
      # Every whole line ends in a newline: a killed run may leave half of one.
      for line in path.read_text().split('\n')[:-1]:
        self._named.add(json.loads(line)['record'])

  def check(self, batch: dict[str, np.ndarray]) -> None:
    """Looks for records of a batch that had to be replaced.

    Raises:
      DataError: more than `max_share` of the records seen are broken.
    """
    self._seen += len(batch['record']) * self._parts
    for record, bad in zip(batch['record'], batch['bad'], strict=True):
      if bad == transforms.GIVEN_UP:
        raise errors.DataError(self._given_up(int(record)))
      for back in range(int(bad), 0, -1):
        self._note(int(record - back) % len(self._source))
    seen = max(min(self._seen, len(self._source)), _MIN_SEEN)
    if self._broken > self._max_share * seen:
      raise errors.DataError(
        f'{self._broken} broken records, more than data.max_bad_share='
        f'{self._max_share} of {seen}; they are listed in {self._path}'
      )

  def _given_up(self, record: int) -> str:
    try:
      transforms.load(
        self._source,
        record,
        transforms.EvalTransform(image_size=1),
        np.random.default_rng(0),
      )
    except errors.DataError as error:
      return str(error)
    name = self._source.record_id(record)
    return f'{name} and its neighbours could not be read, and now they can'

  def _note(self, record: int) -> None:
    if record in self._met:
      return
    self._met.add(record)
    self._broken = self._count(record)
    if record in self._named:
      return
    self._named.add(record)
    name = self._source.record_id(record)
    reason = self._reason(record)
    with self._path.open('a') as file:
      row = {'record': record, 'id': name, 'reason': reason}
      file.write(json.dumps(row) + '\n')
    self._log(f'broken record {name} ({reason}): its neighbour is used')

  def _reason(self, record: int) -> str:
    """Reads it once more: the reader in a worker could not tell why."""
    try:
      decode.decode(self._source[record]['image'])
    except (OSError, decode.BadImage) as error:
      return str(error).splitlines()[0]
    return 'readable now, was not when it was loaded'


def file_name(process: int) -> str:
  """Each process lists what it found itself."""
  return 'bad_records.jsonl' if not process else f'bad_records_{process}.jsonl'
