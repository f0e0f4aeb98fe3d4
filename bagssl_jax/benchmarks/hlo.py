"""Reading the text of a compiled program: its instructions and the arrays that they name."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_ENTRY = re.compile(r'^ENTRY .*?^\}', re.DOTALL | re.MULTILINE)
_INSTRUCTION = re.compile(
    r'^\s*(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<shapes>\(.*?\)|\S+) (?P<kind>[a-z][\w-]*)\('
    r'(?P<rest>.*)$',
    re.MULTILINE,
)
_SHAPE = re.compile(
    r'\b(?P<type>pred|[a-z]+(?P<bits>\d+)\w*)\[(?P<sides>[\d,]*)\](?P<layout>\{[^{}]*\})?'
)
_OPERAND = re.compile(r'%([\w.-]+)')


class Shape(NamedTuple):
    """An array's size, and whether it lies in a memory of the chip's own (TPUs' VMEM, SMEM)."""

    bytes: int
    on_chip: bool


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
      name: unique in the program.
      kind: such as 'fusion' or 'all-reduce-start'.
      shapes: of its results.
      operands: names of the instructions whose results it takes.
      line: its text.
    """

    name: str
    kind: str
    shapes: list[Shape]
    operands: list[str]
    line: str


def instructions(text: str) -> Iterator[Instruction]:
    """All instructions of all computations, as `jax.stages.Compiled.as_text` has them."""
    for match in _INSTRUCTION.finditer(text):
        shapes = [_shape(found) for found in _SHAPE.finditer(match['shapes'])]
        operands = _OPERAND.findall(match['rest'].split('), ')[0])
        yield Instruction(match['name'], match['kind'], shapes, operands, match[0])


def entry_instructions(text: str) -> list[Instruction]:
    """Those of the entry computation, whose fusions count as one instruction each."""
    return list(instructions(_ENTRY.search(text)[0]))


def _shape(match: re.Match[str]) -> Shape:
    count = math.prod(int(side) for side in match['sides'].split(',') if side)
    layout = match['layout'] or ''
    # Memory space 0, which is not written, is the main memory.
    return Shape(count * int(match['bits'] or 8) // 8, re.search(r'S\([1-9]', layout) is not None)
