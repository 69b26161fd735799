"""Reads a partitioned program in XLA's text form (HLO).

XLA prints the program of one device as the partitioner left it: with all
collectives, before a backend chose its kernels and types. One instruction a
line, `%name = type opcode(%operand, ...), attribute=value, ...`.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

_HEADER = re.compile(r'^(ENTRY )?%?([\w.-]+) \(.*\{$')
_INSTRUCTION = re.compile(
  r'^\s+(ROOT )?%?([\w.-]+) = (\([^)]*\)|\S+) ([a-z][\w-]*)\(([^)]*)\)(.*)$'
)
_TYPE = re.compile(r'\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]')
_OPERAND = re.compile(r'%([\w.-]+)(?:#(\d+))?')


@dataclasses.dataclass(frozen=True)
class Array:
  """Type and shape of an array."""

  dtype: str
  shape: tuple[int, ...]

  @property
  def bytes(self) -> int:
    """Its size in memory."""
    bits = 8 if self.dtype == 'pred' else int(re.findall(r'\d+', self.dtype)[0])
    return math.prod(self.shape) * bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a program.

  Attributes:
    name: unique in its computation.
    arrays: what it makes; several for a tuple.
    opcode: such as `dot`.
    operands: names, each with the element that is meant of a tuple, or None.
    text: what stands between the brackets, and the attributes.
    is_root: whether it is the computation's result.
  """

  name: str
  arrays: tuple[Array, ...]
  opcode: str
  operands: tuple[tuple[str, int | None], ...]
  text: str
  is_root: bool

  @property
  def bytes(self) -> int:
    """Size of what it makes."""
    return sum(array.bytes for array in self.arrays)

  def attribute(self, name: str) -> str:
    """The value of an attribute up to the next comma or bracket.

    Raises:
      ValueError: there is none.
    """
    found = re.search(rf'\b{name}=%?([\w.-]+)', self.text)
    if found is None:
      raise ValueError(f'no {name} in {self.opcode}{self.text}')
    return found[1]

  def dimensions(self, name: str) -> tuple[int, ...]:
    """Numbers of an attribute `name={1,2}`; none where it is absent."""
    found = re.search(rf'\b{name}=\{{([\d,]*)\}}', self.text)
    return _numbers(found[1]) if found else ()


@dataclasses.dataclass(frozen=True)
class Program:
  """Computations by name, each a list of instructions in order."""

  computations: Mapping[str, list[Instruction]]
  entry: str

  def walk(
    self, name: str | None = None, times: int = 1
  ) -> Iterator[tuple[Instruction, Mapping[str, Instruction], int]]:
    """Every instruction that runs, its neighbours by name, and how often.

    The body of a loop counts as often as it runs.
    """
    instructions = self.computations[name or self.entry]
    by_name = {instruction.name: instruction for instruction in instructions}
    for instruction in instructions:
      yield instruction, by_name, times
      for inner, count in self.inner(instruction):
        yield from self.walk(inner, times * count)

  def inner(self, instruction: Instruction) -> list[tuple[str, int]]:
    """Computations that an instruction runs as such, and how often."""
    if instruction.opcode == 'while':
      return [(instruction.attribute('body'), self.turns(instruction))]
    return []

  def turns(self, loop: Instruction) -> int:
    """How often the body of a `while` runs: JAX counts from 0 to a constant.

    Raises:
      ValueError: it is another kind of loop.
    """
    condition = self.computations[loop.attribute('condition')]
    limits = [x for x in condition if x.opcode == 'constant']
    root = condition[-1]
    if len(limits) != 1 or 'direction=LT' not in root.text:
      raise ValueError(f'not a counted loop: {loop.name}, {root.text}')
    return int(limits[0].text.partition(')')[0])


def parse(text: str) -> Program:
  """Reads a module."""
  computations: dict[str, list[Instruction]] = {}
  entry = ''
  current: list[Instruction] = []
  for line in text.splitlines():
    if header := _HEADER.match(line):
      current = computations.setdefault(header[2], [])
      entry = header[2] if header[1] else entry
    elif found := _INSTRUCTION.match(line):
      root, name, kind, opcode, inside, rest = found.groups()
      arrays = tuple(
        Array(dtype, _numbers(shape)) for dtype, shape in _TYPE.findall(kind)
      )
      operands = tuple(
        (operand, int(element) if element else None)
        for operand, element in _OPERAND.findall(inside)
      )
      if opcode == 'get-tuple-element':
        ((whole, _),) = operands
        operands = ((whole, int(re.findall(r'\bindex=(\d+)', rest)[0])),)
      current.append(
        Instruction(
          name, arrays, opcode, operands, f'{inside}){rest}', bool(root)
        )
      )
  if not entry:
    raise ValueError('no ENTRY in what should be an HLO module')
  return Program(computations, entry)


def groups(instruction: Instruction) -> np.ndarray:
  """Devices of each group of a collective, `(groups, devices)`.

  XLA has three ways to write them: `{{0,1},{2,3}}`, `[2,2]<=[2,2]T(1,0)`, and
  by axes of a mesh, `mesh['a'=2,'b'=2] {'b'}`.

  Raises:
    ValueError: they are written otherwise.
  """
  text = instruction.text
  if found := re.search(
    r'(?:source_target_pairs|replica_groups)=\{(\{.*?\})\}', text
  ):
    return _lists(found[1])
  if found := re.search(r'replica_groups=\[([\d,]+)\]<=(\S+)', text):
    return _iota(found[2]).reshape(_numbers(found[1]))
  if found := re.search(
    r'replica_groups=mesh\[([^]]*)\](?:, device_ids=\((.*?\]?\)?)\))? '
    r'\{([^}]*)\}',
    text,
  ):
    return _mesh_groups(*found.groups())
  raise ValueError(f'unknown groups of {instruction.opcode}: {text[:300]}')


def _iota(text: str) -> np.ndarray:
  """`[2,4]T(1,0)`: counted up in one shape, read along other axes."""
  found = re.match(r'\[([\d,]+)\](?:T\(([\d,]+)\))?', text)
  if found is None:
    return np.array(_numbers(text))
  shape, order = _numbers(found[1]), _numbers(found[2] or '')
  return np.arange(math.prod(shape)).reshape(shape).transpose(order or None)


def _mesh_groups(axes: str, devices: str | None, chosen: str) -> np.ndarray:
  """Groups by axes of a mesh.

  Args:
    axes: names and sizes, `'a'=2,'b'=4`.
    devices: their order; None: counted up.
    chosen: `'a','b':(1)2`; (1)2 is a part of an axis, two parts of which the
      first has the size 1.
  """
  sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
  parts: dict[str, list[int]] = {name: [size] for name, size in sizes.items()}
  picked = []
  for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", chosen):
    if size:
      after = sizes[name] // int(before) // int(size)
      parts[name] = [int(before), int(size), after]
    picked.append(f'{name} {1 if size else 0}')
  names = [f'{name} {i}' for name in parts for i in range(len(parts[name]))]
  shape = [size for name in parts for size in parts[name]]
  ids = _iota(devices or f'[{math.prod(shape)}]').reshape(shape)
  last = [names.index(name) for name in picked]
  rest = [i for i in range(len(names)) if i not in last]
  count = math.prod(shape[i] for i in last)
  return ids.transpose(rest + last).reshape(-1, count)


def _lists(text: str) -> np.ndarray:
  return np.array(
    [_numbers(part) for part in re.findall(r'\{([\d,]*)\}', text)]
  )


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(int(number) for number in text.split(',') if number)
