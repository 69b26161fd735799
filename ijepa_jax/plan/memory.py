"""Memory of one device in a partitioned program.

A backend for CPUs plans memory for CPUs: it multiplies bfloat16 matrices as
float32. So the buffers are found here, by what all backends for accelerators
do: elementwise work is computed inside of what reads it, and in place where it
updates; matrix products, sums, gathers and collectives write their results.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ijepa_jax.plan.hlo import Instruction, Program
from ijepa_jax.plan.work import KINDS

# They make no array of their own.
_VIEWS = frozenset(
  (
    *('tuple', 'get-tuple-element', 'bitcast', 'reshape', 'copy', 'while'),
    *('parameter', 'optimization-barrier', 'dynamic-update-slice'),
  )
)
# They read whole arrays, and write one.
_WHOLE = frozenset(('dot', 'gather', 'scatter', 'sort', 'custom-call', *KINDS))
# They can be computed inside of what they read, and write a small array.
_SUMS = frozenset(('reduce',))


class _Element(NamedTuple):
  """An array that an instruction makes, or one of a tuple.

  Attributes:
    buffers: it is in these, or computed from them.
    is_computed: it is in none: what reads it computes it.
  """

  buffers: frozenset[int] = frozenset()
  is_computed: bool = False


_Value = tuple[_Element, ...]


class _Buffers:
  """Arrays in memory, from when until when."""

  def __init__(self) -> None:
    self.sizes: list[int] = []
    self.first: list[int] = []
    self.last: list[int] = []

  def write(self, size: int, time: int) -> _Element:
    self.sizes.append(size)
    self.first.append(time)
    self.last.append(time)
    return _Element(frozenset((len(self.sizes) - 1,)))

  def read(self, value: _Value, time: int) -> None:
    for element in value:
      for buffer in element.buffers:
        self.last[buffer] = time


def timeline(program: Program) -> list[int]:
  """Bytes wherever memory may rise in the program, without its arguments."""
  return _timeline(program, program.entry)


def argument_bytes(program: Program) -> int:
  """Bytes of the program's arguments."""
  entry = program.computations[program.entry]
  return sum(x.bytes for x in entry if x.opcode == 'parameter')


def _timeline(program: Program, name: str) -> list[int]:
  instructions = program.computations[name]
  written = _written(instructions, is_entry=name == program.entry)
  buffers = _Buffers()
  values: dict[str, _Value] = {}
  for time, x in enumerate(instructions):
    read = [_read(values, operand) for operand in x.operands]
    in_memory = x.opcode in _VIEWS or x.name in written
    if in_memory or x.is_root:
      for value in read:
        buffers.read(value, time)
    if x.name in written:
      values[x.name] = tuple(
        buffers.write(array.bytes, time) for array in x.arrays
      )
    elif x.opcode in _VIEWS:
      values[x.name] = _view(x, read, buffers, time)
    else:
      everything = (e.buffers for value in read for e in value)
      whole = _Element(frozenset().union(*everything), is_computed=True)
      values[x.name] = (whole,) * len(x.arrays)

  change = [0] * (len(instructions) + 1)
  for size, begin, end in zip(buffers.sizes, buffers.first, buffers.last):
    change[begin] += size
    change[end + 1] -= size
  live = 0
  line = []
  for time, x in enumerate(instructions):
    live += change[time]
    inside = [max(_timeline(program, body)) for body, _ in program.inner(x)]
    # It rises nowhere else; and how many constants there are may differ between
    # two batches, for XLA merges those that are equal.
    if inside or x.name in written:
      line.append(live + max(inside, default=0))
  return line or [0]


def _written(
  instructions: Sequence[Instruction], *, is_entry: bool
) -> frozenset[str]:
  """Names of those whose result is an array in memory.

  The new state of the whole program is written over the old one.
  """
  written: set[str] = set()
  needed: set[str] = set()
  for x in reversed(instructions):
    if x.opcode in _VIEWS:
      # The results of a loop's body; a loop itself makes room for its own.
      is_result = x.is_root and x.opcode == 'tuple' and not is_entry
      if is_result or (x.name in needed and x.opcode != 'tuple'):
        operands = x.operands
        if x.opcode == 'dynamic-update-slice':
          operands = x.operands[:1]  # the update is computed in place
        needed.update(name for name, _ in operands)
    elif x.opcode in _WHOLE:
      written.add(x.name)
      needed.update(name for name, _ in x.operands)
    elif x.opcode in _SUMS or x.name in needed:
      written.add(x.name)
  return frozenset(written)


def _read(values: dict[str, _Value], operand: tuple[str, int | None]) -> _Value:
  name, element = operand
  value = values[name]
  return value if element is None else (value[element],)


def _view(
  x: Instruction, read: Sequence[_Value], buffers: _Buffers, time: int
) -> _Value:
  """What a view is a view of, by element."""
  if x.opcode == 'parameter':
    return (_Element(),) * len(x.arrays)
  if x.opcode == 'tuple':
    return tuple(element for value in read for element in value)
  if x.opcode == 'while':  # starts with arrays of its own
    return tuple(
      buffers.write(array.bytes, time) if element.is_computed else element
      for array, element in zip(x.arrays, read[0])
    )
  return read[0]
