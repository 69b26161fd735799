"""Seconds of a step on an accelerator, from what the step asks of it."""

import dataclasses

from ijepa_jax.accelerators import ACCELERATORS, Accelerator
from ijepa_jax.plan.step import Step
from ijepa_jax.plan.work import Collective


@dataclasses.dataclass(frozen=True)
class Assumed:
  """What a plan takes for granted.

  Attributes:
    name: of the accelerator.
    utilisation: share of its peak rate that matrix products reach.
    images: training images; None: not known.
  """

  name: str
  utilisation: float
  images: int | None

  @property
  def accelerator(self) -> Accelerator:
    """Its figures."""
    return ACCELERATORS[self.name]


@dataclasses.dataclass(frozen=True)
class Seconds:
  """Seconds of one step.

  Attributes:
    compute: matrix products at the assumed share of the peak.
    memory: reading and writing of what they and the update need.
    network: collectives, one after the other.
  """

  compute: float
  memory: float
  network: float

  @property
  def step(self) -> float:
    """Compute and memory at the same time, then the network: no overlap."""
    return max(self.compute, self.memory) + self.network

  @property
  def overlapped(self) -> float:
    """All at the same time: a step takes no less."""
    return max(self.compute, self.memory, self.network)

  @property
  def binds(self) -> str:
    """What takes longest."""
    parts = dataclasses.asdict(self)
    return max(parts, key=lambda name: parts[name])


def seconds(step: Step, assumed: Assumed) -> Seconds:
  """Time of a step, of which nothing has been measured."""
  accelerator = assumed.accelerator
  return Seconds(
    compute=step.flops / (accelerator.flops * assumed.utilisation),
    memory=step.moved_bytes / accelerator.memory_rate,
    network=sum(x.sent / _rate(x, accelerator) for x in step.collectives),
  )


def is_far(x: Collective) -> bool:
  """Whether a collective leaves the fast network."""
  return x.neighbours < x.devices


def _rate(x: Collective, accelerator: Accelerator) -> float:
  """Bytes per second that a device sends.

  Between hosts every neighbour in the group has a network card of its own, and
  a ring passes through all of them.
  """
  if not is_far(x):
    return accelerator.near_rate
  return min(accelerator.near_rate, x.neighbours * accelerator.far_rate)
