"""The directory of a run: one configuration, written down, and never mixed with another."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict

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


def claim(workdir: str, config: Mapping[str, Any], data: Mapping[str, Any] | None) -> None:
    """Makes `workdir` the directory of the run that `config` describes, or finds that it is.

    Writes config.json and data.json. Keys that do not change what is learned may differ between
    two starts.

    Args:
      workdir: created where it does not exist.
      config: the resolved configuration, nested.
      data: of the training images: 'images' (how many), 'classes', 'fingerprint'; None where there
        are none, as of an imported encoder.

    Raises:
      InputError: the directory holds another configuration, naming the first key that differs,
        or a run on other images, or cannot be written.
    """
    directory = pathlib.Path(workdir)
    if (directory / 'config.json').exists():
        new = _settled(over_defaults(json.loads(json.dumps(config))))
        old = _settled(read_config(workdir))
        for key in [*new, *(key for key in old if key not in new)]:
            if old.get(key) != new.get(key) and not key.startswith(FREE_KEYS):
                raise InputError(
                    f'{workdir} holds a run with {key}={old.get(key)}, not {new.get(key)}: '
                    'give another --workdir, or the configuration of that run'
                )
    began = read_data(workdir)
    if data and began and began != data:
        raise InputError(
            f'the training images are not those that the run in {workdir} began with '
            f'({began["images"]:,} then, {data["images"]:,} now): bring those back, or give '
            'another --workdir'
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if data:
            _write(directory / 'data.json', data)
        _write(directory / 'config.json', config)
    except OSError as error:
        raise InputError(f'--workdir={workdir} cannot be written: {error.strerror}') from None


def read_config(workdir: str) -> dict[str, Any]:
    """The resolved configuration, nested, of the run in `workdir`, with every key of today's.

    See `over_defaults` for what becomes of one that an older version wrote.

    Raises:
      InputError: there is none, or it cannot be read.
    """
    path = pathlib.Path(workdir) / 'config.json'
    config = _read(path)
    if config is None:
        raise InputError(
            f'no run in {workdir} (it holds no config.json): give the --workdir of a training'
        )
    try:
        return over_defaults(config)
    except InputError as error:
        raise InputError(f'{path}: {error}') from None


def read_data(workdir: str) -> dict[str, Any] | None:
    """What `claim` wrote down of the training images; None where it wrote nothing."""
    return _read(pathlib.Path(workdir) / 'data.json')


def _read(path: pathlib.Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except OSError:
        return None
    except json.JSONDecodeError as error:
        raise InputError(f'{path} is damaged: {error}') from None


def _write(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    # At once or not at all: a kill must not leave half a file.
    draft = path.with_name(f'{path.name}.new')
    draft.write_text(json.dumps(content, indent=2) + '\n')
    draft.replace(path)


def _settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """What says what is learned, under dotted names."""
    return flatten_dict(without_unchosen(config), sep='.')
