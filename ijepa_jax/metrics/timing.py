"""How fast training goes, and what it waits for."""

import contextlib
import time
from collections.abc import Iterator


class Interval:
  """Wall time, images and useful work since the last row of metrics."""

  def __init__(self, peak_flops: float | None):
    """Starts the first interval.

    Args:
      peak_flops: of all devices together, per second; None when not known.
    """
    self._peak_flops = peak_flops
    self.restart()

  def restart(self) -> None:
    """Starts a new interval."""
    self._start = time.perf_counter()
    self._waited = self._paused = self._flops = 0.0
    self._images = 0

  def add(self, images: int, flops: float) -> None:
    """Counts images trained on and their useful operations."""
    self._images += images
    self._flops += flops

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Time spent waiting for a batch."""
    begin = time.perf_counter()
    yield
    self._waited += time.perf_counter() - begin

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Time that is not training, such as evaluation."""
    begin = time.perf_counter()
    yield
    self._paused += time.perf_counter() - begin

  def metrics(self) -> dict[str, float]:
    """Rates of this interval."""
    seconds = time.perf_counter() - self._start - self._paused
    rates = {
      'train/images_per_second': self._images / seconds,
      'train/data_wait_share': self._waited / seconds,
      'train/model_tflops': self._flops / seconds / 1e12,
    }
    if self._peak_flops is not None:
      rates['train/utilisation'] = self._flops / seconds / self._peak_flops
    return rates
