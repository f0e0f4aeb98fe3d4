"""A run's directory: its configuration, what it says of its data, and its files."""

import dataclasses
import io
import json
import os
from collections.abc import Mapping
from typing import Any, Protocol

from etils import epath

from bagssl_jax.defaults import over_defaults, without_unchosen
from bagssl_jax.errors import InputError

# Keys that change where, how fast or how often, but never what is learned.
FREE_KEYS = (
    'data.dir',
    'data.workers',
    'data.in_memory',
    'data.on_error',
    'data.test_split',
    'train.log_every',
    'train.monitor_every',
    'train.checkpoint_every',
    'train.keep',
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
        """The run in `workdir`, which need not exist yet."""
        path = epath.Path(workdir).expanduser()
        return cls(path if '://' in str(path) else epath.Path(os.path.abspath(path)))

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
        """What `claim` wrote down of the training images; None where it wrote nothing."""
        return self.read_json('data.json')

    @property
    def checkpoints(self) -> epath.Path:
        """Where the checkpoints lie, STEP/ each."""
        return self.directory / 'checkpoints'

    @property
    def scratch(self) -> str | None:
        """Where temporary files go: its own directory, or None, the system's, if that is remote."""
        return None if '://' in str(self) else str(self)

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
        if self.read_json('config.json') is not None:
            new, old = _flat(over_defaults(config)), _flat(self.read_config())
            for key in [*new, *(key for key in old if key not in new)]:
                is_free = key.startswith(FREE_KEYS) or key.endswith('.remat')
                if old.get(key) != new.get(key) and not is_free:
                    raise InputError(
                        f'{self} holds a run with {key}={old.get(key)}, not {new.get(key)}: '
                        'give another --workdir, or the configuration of that run'
                    )
        began = self.read_data()
        if data and began and began != data:
            raise InputError(
                f'the training images are not those that the run in {self} began with '
                f'({began["images"]:,} then, {data["images"]:,} now): bring those back, or give '
                'another --workdir'
            )
        try:
            if data:
                self.write_json('data.json', data)
            self.write_json('config.json', config)
        except OSError as error:
            raise InputError(f'--workdir={self} cannot be written: {error.strerror}') from None

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The object in a file of the run; None where there is no such file.

        Raises:
          InputError: the file is damaged, or cannot be read.
        """
        path = self.directory / name
        try:
            content = json.loads(path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise InputError(f'{path} cannot be read: {error.strerror}') from None
        except ValueError as error:  # no JSON, or no text
            raise InputError(f'{path} is damaged: {error}') from None
        if not isinstance(content, dict):
            raise InputError(f'{path} is damaged: it holds no JSON object')
        return content

    def write_json(self, name: str, content: Mapping[str, Any], *, indent: int = 2) -> None:
        """Writes an object into a file of the run, at once or not at all."""
        self.write(name, (json.dumps(content, indent=indent) + '\n').encode())

    def write_figure(self, name: str, figure: Figure) -> None:
        """Writes figures/`name`.png."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format='png')
        self.write(f'figures/{name}.png', buffer.getvalue())

    def write(self, name: str, content: bytes) -> None:
        """Writes a file of the run, at once or not at all."""
        if not _is_first_process():
            return
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # A kill must not leave half a file.
        draft = path.with_name(f'{path.name}.new')
        draft.write_bytes(content)
        draft.replace(path)


def _is_first_process() -> bool:
    import jax  # here, so that a run can be read without it

    return jax.process_index() == 0


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says of a run, by dotted key."""
    from flax import traverse_util  # here, as it brings JAX

    return traverse_util.flatten_dict(without_unchosen(config), sep='.')
