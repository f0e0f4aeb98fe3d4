"""The folders of checkpoints, on a disk or in a store: filled, read, set aside, removed.

On a disk a folder is filled beside its place and renamed. In a store it is uploaded from the disk,
and complete when its manifest is there: the last of its files.
"""

import contextlib
import errno
import logging
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from bagssl_jax import manifests
from bagssl_jax.storage import is_remote, reading

_UNFINISHED, _REMOVED = '.unfinished', '.removed'
# Orbax writes into a folder of its own beside the place that it is given.
_LEFT_OVER = r'\d+(\.unfinished|\.removed|.*\.orbax-checkpoint-tmp)'


@contextlib.contextmanager
def filled(place: epath.Path, about: Mapping[str, Any]) -> Iterator[epath.Path]:
    """Where to write what becomes the folder at `place` when the block ends well.

    Args:
      place: its parent is there, unless in a store.
      about: what its manifest says.

    Raises:
      OSError: it cannot be written, or its parent is gone.
    """
    if is_remote(place):
        with tempfile.TemporaryDirectory() as staging:
            draft = epath.Path(staging) / place.name
            yield draft
            manifests.seal(draft, about)
            _upload(draft, place)
    elif place.parent.is_dir():
        draft = place.with_name(f'{place.name}{_UNFINISHED}')
        try:
            yield draft
            manifests.seal(draft, about)
            draft.rename(place)
        except BaseException:
            for path in place.parent.glob(f'{draft.name}*'):  # it takes room
                path.rmtree()
            raise
    else:  # orbax would make it anew
        raise FileNotFoundError(errno.ENOENT, f'{place.parent} is gone')


@contextlib.contextmanager
def on_disk(place: epath.Path, manifest: Mapping[str, Any]) -> Iterator[epath.Path]:
    """The folder with the files that a manifest lists; of one in a store, a copy.

    Raises:
      InputError: the store cannot be read. Files that are missing stay so.
    """
    if not is_remote(place):
        yield place
        return
    with tempfile.TemporaryDirectory() as staging:
        directory = epath.Path(staging)
        for name in manifest['files']:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            with reading(place / name), contextlib.suppress(FileNotFoundError):
                (directory / name).write_bytes((place / name).read_bytes())
        yield directory


def remove_unfinished(checkpoints: epath.Path, saved: Iterable[int]) -> None:
    """Removes what interrupted saves have left, and names it in a warning."""
    if not checkpoints.exists():  # a store has no empty folders
        return
    numbers = {str(step) for step in saved}
    for path in checkpoints.iterdir():
        # In a store, a number without a manifest is left over too.
        is_number = is_remote(path) and path.name.isdigit() and path.name not in numbers
        if is_number or re.fullmatch(_LEFT_OVER, path.name):
            if path.suffix != _REMOVED:
                logging.warning('%s: an unfinished save is removed', path)
            path.rmtree()


def remove(path: epath.Path) -> None:
    """Removes a folder that is no longer wanted."""
    if not is_remote(path):  # renamed first: half of it must not pass for one that is damaged
        path = path.rename(path.with_name(f'{path.name}{_REMOVED}'))
    path.rmtree()


def set_aside(path: epath.Path) -> None:
    """Renames a damaged folder to PATH.damaged, or PATH.damaged-2 and so on."""
    names = (f'{path.name}.damaged{suffix}' for suffix in ('', *map('-{}'.format, range(2, 99))))
    place = next(path.parent / name for name in names if not (path.parent / name).exists())
    if is_remote(path):
        for name in _files_below(path):
            (path / name).copy(place / name)
        path.rmtree()
    else:
        path.rename(place)


def _upload(directory: epath.Path, place: epath.Path) -> None:
    """Copies a folder into a store, its manifest last."""
    if place.exists():
        place.rmtree()
    for name in [*manifests.read(directory)['files'], manifests.NAME]:
        (place / name).write_bytes((directory / name).read_bytes())


def _files_below(path: epath.Path, folder: str = '') -> Iterator[str]:
    """Of a folder in a store; epath cannot rename one."""
    for found in (path / folder).iterdir():
        name = f'{folder}/{found.name}' if folder else found.name
        if found.is_dir():
            yield from _files_below(path, name)
        else:
            yield name
