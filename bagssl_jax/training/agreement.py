"""What all processes of a training hear of each other before every execution.

Each sees its own signals and its own part of the data. An execution that one of them would not take
part in would hold up all others for ever, so it is announced first.
"""

from collections.abc import Sequence
from typing import NamedTuple

from bagssl_jax import processes
from bagssl_jax.errors import DataFailure, ElsewhereError, InputError


class Heard(NamedTuple):
    """The same in all processes, but for the error.

    Attributes:
      signal: a number that some process has received, or None.
      unreadable: numbers of images that some process could not read.
      error: this process's own, or another's as `ElsewhereError`, or None.
    """

    signal: int | None
    unreadable: set[int]
    error: Exception | None


def hear(
    turn: int, *, signals: Sequence[int], unreadable: Sequence[int], error: Exception | None
) -> Heard:
    """Tells the others what this process has seen, and hears of them.

    Args:
      turn: how often this was called before.
      signals: numbers that this process has received, the first of which counts.
      unreadable: numbers of images.
      error: that keeps this process from going on.
    """
    failure = None
    if error is not None:
        status = 2 if isinstance(error, InputError) else 1
        known = isinstance(error, InputError | DataFailure)
        failure = status, str(error) if known else f'{type(error).__name__}: {error}'
    own = [signals[0] if signals else None, list(unreadable), failure]
    everyone = processes.gathered(f'turn {turn % 2}', own if any(own) else None)
    signal, numbers = None, set()
    for process, said in enumerate(everyone):
        if said is None:
            continue
        signal = signal or said[0]
        numbers.update(said[1])
        if said[2] and error is None:
            status, text = said[2]
            error = ElsewhereError(f'error: {text} (process {process})', status)
    return Heard(signal, numbers, error)
