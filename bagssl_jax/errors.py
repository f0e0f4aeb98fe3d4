"""How a program ends early for a reason that needs no traceback."""

import signal


class InputError(ValueError):
    """Something the user gave is wrong. The message says in one line what, and what to do.

    Entry points print it on standard error and exit with status 2.
    """


class UnreadableImage(InputError):
    """One image of a data set cannot be decoded. The message names it, and says why."""


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
