"""Files on a disk or in a store: written at once or not at all; what goes wrong, in one line.

A store is what epath and fsspec know by a name such as s3:// or gs://. It shows an object when it
is complete, and cannot append to one.
"""

import contextlib
import errno
import os
import pathlib
import re
import tempfile
import textwrap
from collections.abc import Iterator

from etils import epath

from bagssl_jax.errors import InputError


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether it is that of a store, such as gs://bucket/name."""
    return '://' in os.fspath(path)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what the system, or a library, says of a failed write into one InputError."""
    with _explained(path, 'written'):
        yield


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """The same of a failed read; FileNotFoundError stays."""
    with _explained(path, 'read'):
        yield


@contextlib.contextmanager
def _explained(path: str | os.PathLike[str], done: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # tensorstore raises ValueError, a store's client its own
        if done == 'read' and isinstance(error, FileNotFoundError):
            raise
        reason = unwritable(error)
        if reason is None and is_remote(path):
            reason = f'{type(error).__name__}: {textwrap.shorten(str(error), 200)}'
        if reason is None:
            raise
        raise InputError(f'{path} cannot be {done}: {reason}') from None


def unwritable(error: BaseException) -> str | None:
    """One line for an error of the storage, with what helps; None for any other error."""
    if isinstance(error, RecursionError):  # os.makedirs, of thousands of folders
        error = OSError(errno.ENAMETOOLONG, '')
    text = str(error)
    for number, words in _ADVICE.items():
        name = errno.errorcode[number]
        if getattr(error, 'errno', None) == number or name in text or os.strerror(number) in text:
            return f'{os.strerror(number)}: {words}'
    if isinstance(error, OSError):
        return error.strerror or ' '.join(text.split())
    return None


_ELSEWHERE = 'give another place'
_ROOM = 'what was saved stays; make room, and the same command goes on'
_ADVICE = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: _ROOM,
    errno.EROFS: _ELSEWHERE,
    errno.EACCES: _ELSEWHERE,
    errno.ENOTDIR: _ELSEWHERE,
    errno.EEXIST: 'a file is where a folder should be: take it away',
    errno.EISDIR: 'a folder is where a file should be: take it away',
    errno.ENAMETOOLONG: 'give a shorter name',
    errno.ENOENT: 'its folder is not there',
}


def write(path: epath.Path, content: bytes) -> None:
    """Writes a file, and the folders above it, at once or not at all.

    Raises:
      InputError: it cannot be written; what was there stays.
    """
    with writing(path):
        if is_remote(path):
            path.write_bytes(content)  # a store shows an object when it is complete
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with at_once(pathlib.Path(path)) as draft:
            draft.write_bytes(content)


@contextlib.contextmanager
def at_once(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path beside a local one, which gets its name when the block ends well; else it goes."""
    draft = path.with_name(f'{path.name}.new')
    try:
        yield draft
        with open(draft, 'rb') as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def check_writable(directory: epath.Path) -> None:
    """Raises InputError where no file can be written into a folder, which is made."""
    with writing(directory):
        if is_remote(directory):
            trial = directory / 'trial.tmp'
            trial.write_bytes(b'')
            trial.unlink()
            return
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(bytes(4096))  # a full disk takes an empty one


class Log:
    """A file that grows by whole pieces: a kill or a full disk leaves no part of one.

    In a store it grows by further objects, PATH.000001 and so on, beside the one at PATH.
    """

    def __init__(self, path: epath.Path):
        """Opens the file, or begins it.

        Raises:
          InputError: it cannot be written.
        """
        self._path = path
        self._file, self._part, self._content = None, 0, b''
        with writing(path):
            if is_remote(path):
                self._next_part()
            else:
                self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def append(self, content: bytes) -> None:
        """Writes a piece behind the others.

        Raises:
          InputError: it cannot be written, or the file was deleted.
        """
        with writing(self._path):
            if self._file is None:
                self._append_to_part(content)
                return
            before = os.fstat(self._file)
            if not os.path.samestat(before, os.stat(self._path)):
                raise FileNotFoundError(errno.ENOENT, 'another file is there')
            try:
                while content:
                    content = content[os.write(self._file, content) :]
            except OSError:
                os.ftruncate(self._file, before.st_size)
                raise

    def close(self) -> None:
        """Nothing is left to be written."""
        if self._file is not None:
            os.close(self._file)

    def _next_part(self) -> None:
        self._content = b''
        self._part += 1
        while _part(self._path, self._part).exists():
            self._part += 1

    def _append_to_part(self, content: bytes) -> None:
        self._content += content
        _part(self._path, self._part).write_bytes(self._content)
        if len(self._content) >= PART:
            self._next_part()


PART = 2**16  # bytes of a part; the last one is written anew with every piece


def parts_of(path: epath.Path) -> list[epath.Path]:
    """What a `Log` in a store has written beside the object at `path`, in order."""
    if not is_remote(path) or not path.parent.exists():
        return []
    names = sorted(part.name for part in path.parent.iterdir())
    return [path.parent / name for name in names if re.fullmatch(rf'{path.name}\.\d+', name)]


def _part(path: epath.Path, number: int) -> epath.Path:
    return path.with_name(f'{path.name}.{number:06}')
