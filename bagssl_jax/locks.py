"""One writer a run: a lock that ends with its process, and says whose it is; one after the other.

On a disk the system holds it, and frees it of a dead process. In a store it is a lease: an object
that is written anew while its holder lives.
"""

import contextlib
import fcntl
import itertools
import json
import logging
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import psutil
from etils import epath

from bagssl_jax.errors import InputError
from bagssl_jax.storage import is_remote, writing

NAME = 'run.lock'
BEAT = 10  # seconds between two writings of a lease
DEAD = 4 * BEAT  # seconds without one, by the clock of who waits
SETTLED = 1  # seconds that two who begin at once may lie apart


@contextlib.contextmanager
def only_writer(directory: epath.Path) -> Iterator[None]:
    """Holds the lock of a run's folder, which is made.

    Raises:
      InputError: another process holds it, or the folder cannot be written.
    """
    path = directory / NAME
    with (_lease if is_remote(path) else _lock)(path):
        yield


@contextlib.contextmanager
def in_turn(file: pathlib.Path) -> Iterator[None]:
    """Waits until no one else is in such a block of the same file, which is made and stays.

    Raises:
      InputError: the file cannot be written, or its file system has no locks.
    """
    with contextlib.ExitStack() as stack:
        with writing(file):
            opened = stack.enter_context(open(file, 'ab'))
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _lock(path: epath.Path) -> Iterator[None]:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(pathlib.Path(path))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # of a folder that was deleted
            path.unlink()
        os.close(file)


def _locked(path: pathlib.Path) -> int:
    """The open and locked file; InputError where another process has it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(file, 1000).decode(errors='replace') or 'another process'
            os.close(file)
            raise InputError(_refusal(path, holder)) from None
        # Whoever held it may have ended, and removed the file, since it was opened.
        if path.exists() and os.path.samestat(os.fstat(file), os.stat(path)):
            os.ftruncate(file, 0)
            os.write(file, _own_name().encode())
            return file
        os.close(file)


@contextlib.contextmanager
def _lease(path: epath.Path) -> Iterator[None]:
    own = {'holder': _own_name(), 'id': uuid.uuid4().hex}
    beats = itertools.count()

    def beat() -> None:
        path.write_text(json.dumps({**own, 'beat': next(beats)}))

    with writing(path):
        if holder := _living(path):
            raise InputError(_refusal(path, holder))
        beat()
        time.sleep(SETTLED)
        found = _read(path)
        if found and found['id'] != own['id']:
            raise InputError(_refusal(path, found['holder']))
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(BEAT):
            with contextlib.suppress(Exception):  # the next may reach the store again
                beat()

    thread = threading.Thread(target=keep, name='lease', daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(Exception):  # else it ends by itself
            path.unlink()


def _living(path: epath.Path) -> str | None:
    """Who holds a lease, once it is seen to be written anew; None where no one does."""
    first = _read(path)
    if not first or _is_dead_neighbour(first['holder']):
        return None
    logging.warning('%s: waiting to see whether %s lives', path, first['holder'])
    for _ in range(DEAD):
        time.sleep(SETTLED)
        found = _read(path)
        if found != first:
            return found and found['holder']
    return None


def _read(path: epath.Path) -> dict[str, Any] | None:
    """What a lease says; None where there is none, or no whole one."""
    try:
        found = json.loads(path.read_text())
        return found if {'holder', 'id', 'beat'} <= found.keys() else None
    except (FileNotFoundError, ValueError, AttributeError):
        return None


def _is_dead_neighbour(holder: str) -> bool:
    number, _, host = holder.removeprefix('process ').partition(' on ')
    is_here = host == socket.gethostname() and number.isdigit()
    return is_here and not psutil.pid_exists(int(number))


def _own_name() -> str:
    return f'process {os.getpid()} on {socket.gethostname()}'


def _refusal(path: os.PathLike[str], holder: str) -> str:
    return (
        f'{os.fspath(path).rpartition("/")[0]} is being written by {holder}: wait until it ends, '
        'stop it, or give another --workdir'
    )
