"""Counts what one device computes, moves and sends in a partitioned program."""

import collections
import dataclasses
import math
from collections.abc import Mapping

from ijepa_jax.plan import hlo
from ijepa_jax.plan.hlo import Instruction, Program

# Bytes that a device sends, over the bytes of the largest side, in a ring of n.
_SENT = {
  'all-reduce': lambda n: 2 * (n - 1) / n,
  'all-gather': lambda n: (n - 1) / n,
  'reduce-scatter': lambda n: (n - 1) / n,
  'all-to-all': lambda n: (n - 1) / n,
  'collective-permute': lambda n: 1.0,
}
KINDS = tuple(_SENT)


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective operation.

  Attributes:
    kind: one of `KINDS`.
    bytes: of its larger side, on one device.
    devices: in a group.
    neighbours: of those, how many at most are next to each other; the others
      are reached over the slow network.
    times: how often a step does it.
  """

  kind: str
  bytes: int
  devices: int
  neighbours: int
  times: int

  @property
  def sent(self) -> float:
    """Bytes that a device sends per step."""
    return self.times * self.bytes * _SENT[self.kind](self.devices)


def flops(program: Program) -> int:
  """Operations of the matrix products, two per multiply-add."""
  total = 0
  for x, names, times in program.walk():
    if x.opcode == 'dot':
      left = _operand(x, 0, names)
      contracted = x.dimensions('lhs_contracting_dims')
      inner = math.prod(left.shape[axis] for axis in contracted)
      total += times * 2 * inner * math.prod(x.arrays[0].shape)
  return total


def product_bytes(program: Program) -> int:
  """What the matrix products read and write, each on its own."""
  return sum(
    times * (x.bytes + sum(_operand(x, i, names).bytes for i in range(2)))
    for x, names, times in program.walk()
    if x.opcode == 'dot'
  )


def collectives(program: Program, near: int) -> list[Collective]:
  """All collectives, those of a loop with its number of turns.

  Args:
    program: of one device.
    near: devices on the fast network, numbered one after the other.
  """
  found = []
  for x, names, times in program.walk():
    if x.opcode in KINDS:
      groups = hlo.groups(x)
      sent = sum(_operand(x, i, names).bytes for i in range(len(x.operands)))
      kind = x.opcode
      if kind == 'all-reduce' and _only_sliced(x, names):
        kind = 'reduce-scatter'
      neighbours = min(
        max(collections.Counter(group // near).values()) for group in groups
      )
      found.append(
        Collective(kind, max(x.bytes, sent), groups.shape[1], neighbours, times)
      )
  return [x for x in found if x.devices > 1]


def _only_sliced(x: Instruction, names: Mapping[str, Instruction]) -> bool:
  """Whether devices use a part of a sum: GPU and TPU then scatter it."""
  users = [y for y in names.values() if any(x.name == o for o, _ in y.operands)]
  return bool(users) and all(
    user.opcode == 'dynamic-slice' and user.operands[0][0] == x.name
    for user in users
  )


def _operand(
  x: Instruction, number: int, names: Mapping[str, Instruction]
) -> hlo.Array:
  name, element = x.operands[number]
  return names[name].arrays[element or 0]
