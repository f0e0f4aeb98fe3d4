"""A group of processes: how one joins it, how its death is noticed, and how all of them end.

Every process gives a sign of life every few seconds, and looks at those of all others. JAX would
notice a death too, but later, and end with some dozens of lines about itself.
"""

import ctypes
import itertools
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from typing import NoReturn

import jax
from etils import epath

from bagssl_jax import processes, signals
from bagssl_jax.errors import InputError
from bagssl_jax.parallel import introduce, make_mesh
from bagssl_jax.processes import Place

EVERY = 3  # seconds between signs of life
LIMIT = 30  # seconds without one: then a process counts as dead
JOINING = 300  # seconds that the first processes wait for the last one
ALIVE, ENDED = 'bagssl/alive/', 'bagssl/ended/'
# What JAX's backends say where another process is gone.
OF_OTHERS = r'Gloo|NCCL|UNAVAILABLE|DEADLINE_EXCEEDED|[Cc]oordination|[Cc]onnection|[Bb]arrier'


def join(place: Place, workdir: str) -> 'Group':
    """Meets the other processes; to be called before JAX looks for devices.

    From here on, what all processes but the first print goes to WORKDIR/errors/process_I.log.

    Where they do not come together in `JOINING` seconds, each ends with a line and exit status 1.

    Raises:
      InputError: the address or what the cluster says of them is of no use.
    """
    who = 'the processes that the cluster names'
    if place.coordinator:
        who = f'{place.processes} processes at --coordinator={place.coordinator}'
    line = f'error: {who} did not come together in {JOINING} seconds: see whether all were started'
    timer = threading.Timer(JOINING, _give_up, (line, place.process))
    timer.daemon = True
    timer.start()
    # Ours is in force. JAX's handler of SIGTERM would take the signal from it.
    jax.config.update('jax_enable_preemption_service', False)
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.processes,
            place.process,
            initialization_timeout=2 * JOINING,  # after which JAX aborts
            # JAX sends one in half of that time: it must not be the first to notice a death.
            heartbeat_timeout_seconds=3 * LIMIT,
        )
    except Exception as error:  # whatever a cluster's ways to find each other raise
        reason = ' '.join(str(error).split())[:200]
        raise InputError(f'{who} cannot come together: {reason}') from None
    finally:
        timer.cancel()
    group = Group(workdir)
    try:
        mesh = make_mesh()
        processes.barrier('devices found')
        introduce(mesh)
    except InputError:
        raise
    except Exception as error:
        reason = ' '.join(str(error).split())[:200]
        group.fail(error, 1, f'error: the devices of {who} cannot reach each other: {reason}')
    return group


def _give_up(line: str, process: int | None) -> None:
    os.write(2, f'{line}\n'.encode())
    if not process:
        time.sleep(15)  # JAX would abort in all others before they have come to this
    os._exit(1)


class Group:
    """This process among the others, from `join` to its end."""

    def __init__(self, workdir: str):
        self._number, self._count = processes.number(), processes.count()
        self._log = _log(workdir, self._number)
        self._terminal = os.dup(2)
        self._redirect()
        self._client = processes.client()
        self._heard = {}  # process -> its last sign of life
        self._heard_at = dict.fromkeys(range(self._count), time.monotonic())
        self._answered_at = time.monotonic()  # the coordination service, last
        self._ending = threading.Lock()  # held by the one thread that ends this process
        self._over = threading.Event()
        for loop in (self._give_signs, self._watch):
            threading.Thread(target=loop, daemon=True).start()
        self._aborted = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._abort)
        _set_c_handler(signal.SIGABRT, ctypes.cast(self._aborted, ctypes.c_void_p))

    def finish(self) -> None:
        """Waits for all others to come to the same end, and leaves the group."""
        try:
            processes.barrier('end')
        except Exception as error:
            self.fail(error, 1, f'error: {error}')
        self._over.set()
        with self._ending:
            _set_c_handler(signal.SIGABRT, None)
            jax.distributed.shutdown()
        if self._number and self._log is not None and not self._log.stat().length:
            self._log.unlink()

    def fail(self, error: BaseException, status: int, line: str) -> NoReturn:
        """Ends this process for a reason of its own, and with it all others, in the same way.

        Where the reason is that another process died, that is found and said instead.

        Args:
          error: the reason.
          status: to exit with.
          line: what to say of it; '' for the traceback.
        """
        if re.search(OF_OTHERS, str(error)) and type(error).__module__.partition('.')[0] in (
            'builtins',
            'jax',
            'jaxlib',
        ):
            time.sleep(LIMIT + 3 * EVERY)  # the watch ends this process, if it was that
        if not line:
            traceback.print_exception(error)
            line = f'error: {type(error).__name__}: {" ".join(str(error).split())[:200]}'
        self._end(status, line, said=self._number > 0)

    def tell(self, status: int, line: str) -> None:
        """Lets the others end like this process, which is about to: with this status and line."""
        if self._ending.acquire(blocking=False):
            self._tell(status, line)

    def _redirect(self) -> None:
        """Lets the first process alone print. C++ writes to standard output too: into a log."""
        sys.stdout.flush(), sys.stderr.flush()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        if not self._number:
            sys.stdout = os.fdopen(os.dup(1), 'w')
        os.dup2(nowhere, 1)
        if self._number and self._log is not None:
            os.dup2(os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)

    def _give_signs(self) -> None:
        me = f'{socket.gethostname()}, pid {os.getpid()}'
        for beat in itertools.count():
            try:
                self._client.key_value_set(
                    f'{ALIVE}{self._number}', json.dumps([me, beat]), allow_overwrite=True
                )
                for key, sign in self._client.key_value_dir_get(ALIVE):
                    process = int(key.rpartition('/')[2])
                    if self._heard.get(process) != sign:
                        self._heard[process] = sign
                        self._heard_at[process] = time.monotonic()
                self._answered_at = time.monotonic()
                for key, text in self._client.key_value_dir_get(ENDED):
                    status, line = json.loads(text)
                    process = int(key.rpartition('/')[2])
                    if process != self._number:
                        self._end(status, f'{line} (process {process})', said=self._number > 0)
            except Exception:  # the service does not answer: `_watch` counts the seconds
                pass
            if self._over.wait(EVERY):
                return

    def _watch(self) -> None:
        while not self._over.wait(1):
            now = time.monotonic()
            dead = [p for p, at in self._heard_at.items() if now - at > LIMIT]
            if self._number and now - self._answered_at > LIMIT:
                dead = [0]  # of all others nothing can be heard without it
            if dead:
                self._bury(dead)

    def _abort(self, _number: int) -> None:
        """JAX aborts at once where process 0 is gone: not in the middle of anything of Python's."""
        if self._number:
            self._bury([0])
        self._end(1, 'error: JAX ended this process, as it says above', said=False)

    def _bury(self, dead: list[int]) -> None:
        names = [
            f'{process} ({json.loads(self._heard[process])[0]})'
            if process in self._heard
            else str(process)
            for process in dead
        ]
        line = (
            f'error: process{"es" * (len(dead) > 1)} {", ".join(names)} of {self._count} died or '
            'cannot be reached: the same command goes on from the newest checkpoint'
        )
        first_alive = next(p for p in range(self._count) if p not in dead)
        self._end(1, line, said=self._number != first_alive, alone=True)

    def _end(self, status: int, line: str, *, said: bool, alone: bool = False) -> NoReturn:
        """Ends this process at once.

        Args:
          status: to exit with.
          line: printed by the first process to end so, and written into every log.
          said: whether another process prints it.
          alone: whether the others know already, or cannot be told.
        """
        if not self._ending.acquire(blocking=False):
            while True:  # another thread is at it
                time.sleep(1)
        if not said:
            os.write(self._terminal, ('\n' * signals.shows_a_bar() + f'{line}\n').encode())
        if self._log is not None and (said or not self._number):
            with open(self._log, 'a') as log:
                print(line, file=log)
        if not alone:
            self._tell(status, line)
        os._exit(status)

    def _tell(self, status: int, line: str) -> None:
        """Tells the others why, and waits for them where they hear it from here."""
        try:
            self._client.key_value_set(
                f'{ENDED}{self._number}', json.dumps([status, line]), allow_overwrite=True
            )
            until = time.monotonic() + 5 * EVERY
            while not self._number and time.monotonic() < until:
                if len(self._client.key_value_dir_get(ENDED)) == self._count:
                    time.sleep(0.5)  # they have yet to leave
                    return
                time.sleep(0.1)
        except Exception:  # it cannot be told
            pass


def _log(workdir: str, number: int) -> epath.Path | None:
    """Where this process says what goes wrong; None where that cannot be."""
    if not workdir or '://' in workdir:
        return None
    path = epath.Path(os.path.abspath(os.path.expanduser(workdir))) / 'errors'
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return path / f'process_{number}.log'


def _set_c_handler(number: int, handler: ctypes.c_void_p | None) -> None:
    """Python's own handlers would run later, in the main thread: here, never."""
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal(number, handler)
