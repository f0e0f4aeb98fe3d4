"""What a compiled TPU program moves to and from the chip's main memory, read from its text."""

from bagssl_jax.benchmarks.hlo import Instruction, entry_instructions

# These move nothing: they name, group or end what others have begun.
_STILL = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast')


def hbm_bytes(text: str) -> int:
    """Bytes that one run of a TPU program reads from and writes to HBM.

    Of every instruction, a fusion being one, the operands and results that are not marked as lying
    in the chip's own memory (VMEM). XLA's 'bytes accessed' counts those too, and once more what is
    fetched ahead, though they cost no bandwidth of the HBM. The body of a loop is not looked into.

    Args:
      text: of a program compiled for TPUs, as `jax.stages.Compiled.as_text` gives it.
    """
    program = entry_instructions(text)
    results = {instruction.name: instruction.shapes for instruction in program}
    total = 0
    for instruction in program:
        kind = instruction.kind
        if kind in _STILL or kind.endswith('-done'):
            continue
        if kind in ('copy-start', 'slice-start'):
            total += _fetched(instruction)
            continue
        shapes = instruction.shapes + [s for name in instruction.operands for s in results[name]]
        total += sum(shape.bytes for shape in shapes if not shape.on_chip)
    return total


def _fetched(start: Instruction) -> int:
    """Of an asynchronous copy, whose shapes are a source, a target and a flag.

    A slice's source is the whole of which it takes its part.
    """
    moved = [shape for shape in start.shapes if shape.bytes > 4]
    part = min(shape.bytes for shape in moved)
    return part * sum(not shape.on_chip for shape in moved)
