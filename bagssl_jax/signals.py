"""What SIGINT (Ctrl-C) and SIGTERM (a preemption) do to a program.

They end it at once, with exit status 130 or 143 and one line, whatever it is at: importing,
compiling, embedding. Every file is complete from the moment that it has its name, so nothing is
lost that was written. Only where there is something to save does a `Deferral` put the end off.

Nothing here imports anything that takes time: programs call it before they import the rest.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

NUMBERS = (signal.SIGINT, signal.SIGTERM)
ECHO = 1.0  # seconds in which a SIGTERM is the one before: timeout(1) sends it twice


@contextlib.contextmanager
def ending(outlook: str, last_words: Sequence[Callable[[int, str], None]] = ()) -> Iterator[None]:
    """Inside, a signal ends the program; a second one ends it where the first was put off.

    Python runs a handler in the main thread, when that is next at Python code: after a compilation
    or an import of minutes. So a thread of its own hears of every signal when it comes.

    Args:
      outlook: ends the line that is printed: what stays, and how to go on.
      last_words: called then with the exit status and that line; may be filled inside.
    """
    begun = threading.Lock()

    def end(number, _=None):
        if not begun.acquire(blocking=False):
            return  # the other thread is at it
        try:
            _kill_workers()
            line = f'stopped by {signal.Signals(number).name}: {outlook}'
            # Not by sys.stderr, whose lock the main thread may hold.
            os.write(2, ('\n' * shows_a_bar() + f'{line}\n').encode())
            for tell in last_words:
                tell(128 + number, line)
        finally:  # also where nobody reads that
            os._exit(128 + number)

    def listen():
        put_off = {}
        while heard := os.read(receiver, 1):
            [number] = heard
            handler = signal.getsignal(number)
            first = put_off.get((number, handler))
            if handler is end or (first is not None and not _is_echo(number, first)):
                end(number)
            put_off.setdefault((number, handler), time.monotonic())

    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    before = {number: signal.signal(number, end) for number in NUMBERS}
    sent_before = signal.set_wakeup_fd(sender)
    listener = threading.Thread(target=listen, name='signals', daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(sent_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(sender)
        listener.join()
        os.close(receiver)


class Deferral:
    """Puts signals off, from `begin` to the end of the `with` block.

    A second one of a kind acts at once, as it would have without; but of SIGTERM not within `ECHO`.

    Attributes:
      seen: the numbers of those that came.
    """

    def __init__(self):
        self.seen: list[int] = []
        self._first = {}
        self._before = {}
        self._breaks_off = False

    def begin(self) -> None:
        """From here on there is something to save. Not the first time, it does nothing."""
        for number in NUMBERS if not self._before else ():
            self._before[number] = signal.signal(number, self._see)

    @contextlib.contextmanager
    def breaking_off(self) -> Iterator[None]:
        """A signal that is seen inside breaks the block off: what follows it is done at once."""
        self._breaks_off = True
        try:
            yield
        except _BrokenOff:
            pass
        finally:
            self._breaks_off = False

    def __enter__(self) -> 'Deferral':
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _see(self, number, _) -> None:
        first = self._first.setdefault(number, time.monotonic())
        if number in self.seen:
            if _is_echo(number, first):
                return
            signal.signal(number, self._before[number])
            signal.raise_signal(number)
        self.seen.append(number)
        if self._breaks_off:
            self._breaks_off = False
            raise _BrokenOff


class _BrokenOff(BaseException):
    """Ends a block of `Deferral.breaking_off`."""


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """Inside, a signal raises KeyboardInterrupt: what must be cleared up can be."""

    def interrupt(number, _):
        raise KeyboardInterrupt(number)

    before = {number: signal.signal(number, interrupt) for number in NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_echo(number: int, first: float) -> bool:
    """Whether a signal is that of so long ago once more, to a process and then to its group."""
    return number == signal.SIGTERM and time.monotonic() - first < ECHO


def _kill_workers() -> None:
    """Kills the processes that were spawned: they would complain that this one is gone."""
    if 'multiprocessing.popen_spawn_posix' not in sys.modules:
        return
    import psutil

    for child in psutil.Process().children():
        # Not the resource tracker, which clears up behind this process.
        with contextlib.suppress(psutil.Error):
            if 'spawn_main' in ' '.join(child.cmdline()):
                child.kill()


def shows_a_bar() -> bool:
    """Whether a progress bar has the cursor in its line."""
    bar = getattr(sys.modules.get('tqdm'), 'tqdm', None)
    return bool(getattr(bar, '_instances', ()))
