"""How a program ends early for a reason that needs no traceback."""

import re
import signal
from collections.abc import Collection


class InputError(ValueError):
    """Something the user gave is wrong. The message says in one line what, and what to do.

    Entry points print it on standard error and exit with status 2.
    """


def check_known(what: str, name: str, known: Collection[str]) -> None:
    """Raises InputError, which lists those that there are, for a name that is not `known`.

    Args:
      what: it is the name of: a kind of thing, or a key.
      name: that was given.
      known: all that there are, in the order in which they are listed.
    """
    if name not in known:
        raise InputError(f'unknown {what} {name!r}: choose from {", ".join(known)}')


class UnreadableImage(InputError):
    """One image of a data set cannot be decoded. The message names it, and says why."""


class LostImage(UnreadableImage):
    """The file of an image has gone since it was listed."""


class Incomplete(Exception):
    """The work is done, but for some of the items, which the message lists.

    Entry points print it on standard error and exit with status 3.
    """


class DataFailure(Exception):
    """The input pipeline broke down, through no fault of the user's.

    Entry points print it on standard error and exit with status 1.
    """


class WorkerDied(DataFailure):
    """A worker process of the data pipeline ended before its time.

    Attributes:
      exit_code: of the process; -N where signal N ended it.
    """

    def __init__(self, exit_code: int):
        super().__init__(
            f'a worker process of the data pipeline died (exit code {exit_code}; -9 is often a '
            'lack of memory: fewer data.workers need less)'
        )
        self.exit_code = exit_code


class ElsewhereError(Exception):
    """Another process met an error, whose message and exit status this one takes over.

    Attributes:
      status: to exit with.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class Interrupted(Exception):
    """A signal stopped the training, which has saved where it was.

    Entry points print the message and exit with 128 + `number`, as a shell would.
    """

    def __init__(self, number: int, step: int):
        super().__init__(
            f'stopped by {signal.Signals(number).name} at step {step}, which is saved: the same '
            'command goes on from there'
        )
        self.number = number


def alike(error: Exception) -> Exception:
    """Marks an error that all processes of a program raise at the same place, and returns it.

    They then end one after the other, when each has saved what it has to, and not at once.
    """
    error.alike = True
    return error


def out_of_memory(error: Exception) -> str | None:
    """One line for XLA's or Python's error that memory ran out; None for any other error."""
    text = str(error)
    if not text.startswith('RESOURCE_EXHAUSTED') and not isinstance(error, MemoryError):
        return None
    if 'No space left' in text or 'ENOSPC' in text:  # tensorstore says so of a full disk
        return None
    # The TPU's compiler: 'Used 17.50G of 15.75G hbm', '(17.50G) exceeds available HBM (15.75G)'.
    sizes = [float(number) * _UNITS[unit] for number, unit in re.findall(r'([\d.]+)([MG])\b', text)]
    if len(sizes) >= 2 and sizes[0] > sizes[1]:
        return memory_shortage(*sizes[:2])
    asked = re.search(r'allocat\w* (\d+) bytes', text)
    what = f', asked for {int(asked[1]) / 2**30:.2f} GiB at once' if asked else ''
    return f'out of memory{what}: {_LESS}'


def memory_shortage(needed: float, available: float, place: str = 'of a device') -> str:
    """One line that says how many of the bytes that are needed are missing, and what helps.

    Args:
      needed: bytes.
      available: bytes.
      place: whose the available ones are.
    """
    needed, available = needed / 2**30, available / 2**30
    return (
        f'{needed:.2f} GiB of memory are needed, {needed - available:.2f} more than the '
        f'{available:.2f} {place}: {_LESS}'
    )


_UNITS = {'M': 2**20, 'G': 2**30}
_LESS = (
    'fewer images or patches at a time (data.batch_size, patches.count; probe.batch_size for '
    'embeddings), narrower networks (encoder.width, projector.widths), train.accumulate=2 or more, '
    'encoder.remat=norms, encoder.dtype=bfloat16, fewer data.workers, or more devices, need less'
)
