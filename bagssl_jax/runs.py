"""A run's directory: its configuration, what it says of its data, and its files."""

import contextlib
import dataclasses
import io
import json
import os
import re
from collections.abc import Mapping
from typing import Any, Protocol

from etils import epath

from bagssl_jax import manifests, processes, storage
from bagssl_jax.configurations import flat, over_defaults, without_unchosen
from bagssl_jax.errors import InputError
from bagssl_jax.locks import only_writer
from bagssl_jax.manifests import DamagedError
from bagssl_jax.storage import is_remote, reading

# Keys that change where, how fast or how often, but never what is learned.
FREE_KEYS = (
    'data.dir',
    'data.workers',
    'data.in_memory',
    'data.on_error',
    'data.test_split',
    'train.log_every',
    'train.tracker',
    'train.monitor_every',
    'train.checkpoint_every',
    'train.keep',
    'train.on_nonfinite',
    'train.most_skipped',
    'probe.',
    'analysis.',
    'benchmark.',
)


class Figure(Protocol):
    """What of matplotlib.figure.Figure a run needs."""

    def savefig(self, fname: Any, *, format: str) -> None: ...


@dataclasses.dataclass(frozen=True)
class Run:
    """The directory of one run, local or remote (gs://).

    Every file appears under its name when it is complete, and of several processes the first
    alone writes.
    """

    directory: epath.Path

    @classmethod
    def at(cls, workdir: str | os.PathLike[str]) -> 'Run':
        """The run in `workdir`, which need not exist yet.

        Raises:
          InputError: it is '', or in a store that is not known.
        """
        if not os.fspath(workdir):
            raise InputError('--workdir is missing: give --workdir=DIR, the directory of the run')
        try:
            path = epath.Path(workdir).expanduser()
        except KeyError as error:
            raise InputError(
                f'--workdir={workdir}: {error.args[0]} is not a store of runs: give a folder, '
                's3://BUCKET/DIR or gs://BUCKET/DIR'
            ) from None
        return cls(path if is_remote(path) else epath.Path(os.path.abspath(path)))

    def __str__(self) -> str:
        return str(self.directory)

    def read_config(self) -> dict[str, Any]:
        """The resolved configuration, nested, laid over the defaults.

        Raises:
          InputError: there is none, or it cannot be read.
        """
        stored = self.read_json('config.json')
        if stored is None:
            raise InputError(
                f'no run in {self} (it holds no config.json): give the --workdir of a training'
            )
        try:
            return over_defaults(stored)
        except InputError as error:
            raise InputError(f'{self.directory / "config.json"}: {error}') from None

    def read_data(self) -> dict[str, Any] | None:
        """What `claim` wrote down of the training images; None where it wrote nothing.

        Raises:
          InputError: the file is damaged, or cannot be read.
        """
        data = self.read_json('data.json')
        for key, kind in (('images', int), ('classes', list), ('fingerprint', str)):
            if data is not None and not isinstance(data.get(key), kind):
                raise InputError(self._damaged('data.json', f'it does not say {key!r}'))
        return data

    def steps(self) -> list[int]:
        """Of the checkpoints, whether they are damaged or not; the newest comes last.

        Raises:
          InputError: they cannot be listed.
        """
        with reading(self.checkpoints):
            if not self.checkpoints.is_dir():
                return []
            found = [
                path
                for path in self.checkpoints.iterdir()
                if re.fullmatch('0|[1-9][0-9]*', path.name)
            ]
            if is_remote(self.checkpoints):
                # The last files that are written; the second, by versions without manifests.
                ends = (manifests.NAME, 'commit_success.txt')
                found = [path for path in found if any((path / end).exists() for end in ends)]
        return sorted(int(path.name) for path in found)

    def identity(self) -> dict[str, Any]:
        """What tells this run from others, as its files say, or else the newest checkpoint.

        Returns:
          'config' and 'data', as in config.json and data.json; None for what is not known.
        """
        found = {'config': self.read_json('config.json'), 'data': self.read_data()}
        for step in reversed(self.steps()):
            if None not in found.values():
                break
            with contextlib.suppress(DamagedError):
                if manifest := manifests.read(self.checkpoints / str(step)):
                    return {key: found[key] or manifest['run'][key] for key in found}
        return found

    def difference(self, identity: Mapping[str, Any]) -> str | None:
        """The first thing that tells a run of that identity from this one; None of the same run."""
        own = self.identity()
        if own['data'] and identity['data'] and own['data'] != identity['data']:
            return 'other images'
        if own['config'] and identity['config']:
            return _first_difference(identity['config'], own['config'])
        return None

    @property
    def checkpoints(self) -> epath.Path:
        """Where the checkpoints lie, STEP/ each."""
        return self.directory / 'checkpoints'

    @property
    def scratch(self) -> str | None:
        """Where temporary files go: its own directory, or None, the system's, if that is remote."""
        return None if is_remote(self.directory) else str(self)

    def claim(self, config: Mapping[str, Any], data: Mapping[str, Any] | None) -> None:
        """Makes the directory that of the run which `config` describes, or finds that it is.

        Writes config.json and data.json. Keys that do not change what is learned may differ
        between two starts, and so may keys that did not exist at the first one.

        Args:
          config: the resolved configuration, nested.
          data: of the training images: 'images' (how many), 'classes', 'fingerprint'; None where
            there are none, as of an imported encoder.

        Raises:
          InputError: the directory holds another configuration, naming the first key that
            differs, or a run on other images, or cannot be written.
        """
        known = self.identity()
        if known['config'] is None and self.steps():
            raise InputError(
                f'{self} holds checkpoints, but no config.json, which says what they are of: bring '
                'it back, or give another --workdir'
            )
        if known['config'] and (found := _first_difference(known['config'], config)):
            raise InputError(
                f'{self} holds a run with {found}: give another --workdir, or the configuration of '
                'that run'
            )
        began = known['data']
        if data and began and began != data:
            raise InputError(
                f'the training images are not those that the run in {self} began with '
                f'({began["images"]:,} then, {data["images"]:,} now): bring those back, or give '
                'another --workdir'
            )
        if data:
            self.write_json('data.json', data)
        self.write_json('config.json', config)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The object in a file of the run; None where there is no such file.

        Raises:
          InputError: the file is damaged, or cannot be read.
        """
        content = self.read(name)
        if content is None:
            return None
        try:
            content = json.loads(content)
        except (ValueError, RecursionError) as error:  # no JSON, or no text
            raise InputError(self._damaged(name, str(error))) from None
        if not isinstance(content, dict):
            raise InputError(self._damaged(name, 'it holds no JSON object'))
        return content

    def read(self, name: str) -> bytes | None:
        """What is in a file of the run; None where there is no such file.

        Raises:
          InputError: it cannot be read.
        """
        path = self.directory / name
        try:
            with reading(path):
                return path.read_bytes()
        except FileNotFoundError:
            return None

    def _damaged(self, name: str, reason: str) -> str:
        return f'{self.directory / name} is damaged: {reason}: bring back a copy, or take it away'

    def write_json(self, name: str, content: Mapping[str, Any], *, indent: int = 2) -> None:
        """As `write`, of an object as JSON."""
        self.write(name, (json.dumps(content, indent=indent) + '\n').encode())

    def write_figure(self, name: str, figure: Figure) -> None:
        """As `write`, of figures/NAME.png."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format='png')
        self.write(f'figures/{name}.png', buffer.getvalue())

    def write(self, name: str, content: bytes) -> None:
        """Writes a file of the run, at once or not at all.

        Raises:
          InputError: it cannot be written; what was there stays.
        """
        if processes.is_first():
            storage.write(self.directory / name, content)

    def check_writable(self) -> None:
        """Raises InputError where nothing can be written: before something is computed."""
        if processes.is_first():
            storage.check_writable(self.directory)

    def only_writer(self) -> contextlib.AbstractContextManager[None]:
        """Makes a second training of this run end in an InputError while the context lasts."""
        return only_writer(self.directory) if processes.is_first() else contextlib.nullcontext()


def _first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """'KEY=OLD, not NEW' of the first key that changes what is learned and differs."""
    old, new = _said(old), _said(new)
    for key in [*new, *(key for key in old if key not in new)]:
        is_free = key.startswith(FREE_KEYS) or key.endswith('.remat')
        if old.get(key) != new.get(key) and not is_free:
            return f'{key}={old.get(key)}, not {new.get(key)}'
    return None


def _said(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says of a run, by dotted key."""
    said = flat(without_unchosen(over_defaults(config)))
    return {key: value for key, value in said.items() if value != {}}
