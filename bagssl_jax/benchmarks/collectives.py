"""What a compiled program sends between devices, read from its text."""

import collections
import re
from collections.abc import Mapping

from bagssl_jax.benchmarks.hlo import instructions

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'collective-permute', 'all-to-all')

_GROUP = re.compile(r'replica_groups=(?:\{\{(?P<members>[\d,]+)\}|\[\d+,(?P<size>\d+)\])')


def collective_bytes(text: str) -> dict[str, int]:
    """Bytes of the arrays that one run of a program takes between devices, by kind.

    Of each collective the whole array: an all-reduce's and an all-to-all's result, what an
    all-gather makes, what a reduce-scatter takes. Of two halves of an asynchronous one the second.

    A collective in the body of a loop counts once; the training step has none there, unless its
    batch passes in parts (`train.accumulate`).

    Args:
      text: of a compiled program, as `jax.stages.Compiled.as_text` gives it.

    Returns:
      Kind, one of `KINDS` -> bytes, for every kind that occurs.
    """
    found = collections.Counter()
    for instruction in instructions(text):
        # The result of a first half ('-start') has its operands and flags in it as well.
        kind = instruction.kind.removesuffix('-done')
        if kind in KINDS:
            size = sum(shape.bytes for shape in instruction.shapes)
            if kind == 'reduce-scatter':
                size *= _group_size(instruction.line)
            found[kind] += size
    return dict(found)


def sent_bytes(collectives: Mapping[str, int], devices: int) -> float:
    """What each of so many devices must send at least, of what `collective_bytes` found.

    Its share of every array to each of the others once, twice for an all-reduce (once to add up,
    once to hand out); a permutation sends all of it.
    """
    share = (devices - 1) / devices
    factors = {'all-reduce': 2 * share, 'collective-permute': 1.0}
    return sum(factors.get(kind, share) * size for kind, size in collectives.items())


def _group_size(line: str) -> int:
    """The number of devices that share a collective."""
    group = _GROUP.search(line)
    if group is None:
        raise ValueError(f'a collective without replica_groups: {line.strip()[:200]}')
    return int(group['size'] or group['members'].count(',') + 1)
