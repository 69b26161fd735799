"""Reading ahead in threads."""

import collections
import concurrent.futures
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar('Item')
Result = TypeVar('Result')


def in_threads(
  function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
  """`map` in threads, in order, at most `ahead` results waiting.

  Threads do: Pillow releases the interpreter's lock while it decodes.
  """
  remaining = iter(items)
  pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
  try:
    waiting = collections.deque(
      pool.submit(function, item) for item in itertools.islice(remaining, ahead)
    )
    while waiting:
      result = waiting.popleft().result()
      for item in itertools.islice(remaining, 1):
        waiting.append(pool.submit(function, item))
      yield result
  finally:
    # Who stops early, as on Ctrl-C, does not wait for what was not begun.
    pool.shutdown(cancel_futures=True)
