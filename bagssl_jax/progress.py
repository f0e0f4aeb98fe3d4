"""What a program says while there is nothing to do but wait."""

import contextlib
import sys
import threading
from collections.abc import Iterator

from bagssl_jax import processes

IMPORTING = 'importing libraries'
SHORT = 3.0  # seconds in which nobody wonders


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Says what is under way inside, in a line on standard error, where it is not over at once.

    The line stands above a progress bar, if there is one; of several processes, the first says it.
    """
    if not processes.is_first():
        yield
        return
    timer = threading.Timer(SHORT, _say, (f'{what} ...',))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _say(line: str) -> None:
    import tqdm  # here, because what is waited for may be that programs import what they need

    tqdm.tqdm.write(line, file=sys.stderr)
