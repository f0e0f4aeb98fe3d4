"""The manifest of a folder: what it holds, file by file with checksums, and what it is of.

A manifest carries a checksum of itself, so that no flipped bit of any file can go unseen.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from etils import epath

NAME = 'manifest.json'


class DamagedError(Exception):
    """A folder does not hold what was put there. The message says what differs."""


def seal(directory: epath.Path, about: Mapping[str, Any]) -> None:
    """Writes the manifest of a local folder that is complete.

    Args:
      directory: whose files are listed, with their sizes and SHA-256.
      about: what else the manifest says, as JSON.
    """
    paths = sorted(path for path in pathlib.Path(directory).rglob('*') if path.is_file())
    files = {path.relative_to(directory).as_posix(): _described(path) for path in paths}
    content = json.loads(json.dumps({**about, 'files': files}))  # keys and tuples as JSON has them
    content['sha256'] = _checksum(content)
    (directory / NAME).write_text(json.dumps(content, indent=1) + '\n')


def read(directory: epath.Path) -> dict[str, Any] | None:
    """What the manifest of a folder says, 'files' included; None where there is no manifest.

    Raises:
      DamagedError: the manifest is not what was written.
    """
    try:
        content = json.loads((directory / NAME).read_text())
        checksum = content.pop('sha256')
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f'{NAME} cannot be read: {error}') from None
    if checksum != _checksum(content):
        raise DamagedError(f'{NAME} differs from what was written')
    return content


def check(directory: epath.Path, manifest: Mapping[str, Any]) -> None:
    """Compares every file of a local folder with its manifest; further files do not matter.

    Raises:
      DamagedError: a file is missing, or differs.
    """
    for name, expected in manifest['files'].items():
        try:
            found = _described(pathlib.Path(directory, name))
        except OSError as error:
            raise DamagedError(f'{name}: {error.strerror}') from None
        if found != expected:
            raise DamagedError(f'{name} differs from what was written')


def _described(path: pathlib.Path) -> dict[str, Any]:
    with path.open('rb') as file:
        digest = hashlib.file_digest(file, 'sha256')
        return {'bytes': file.tell(), 'sha256': digest.hexdigest()}


def _checksum(content: Mapping[str, Any]) -> str:
    """Of an object as JSON writes it, whatever the order and the spaces."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
