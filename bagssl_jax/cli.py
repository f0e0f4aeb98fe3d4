"""How the programs start: flags, and one line with exit status 2 for what the user got wrong."""

import difflib
import os
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from bagssl_jax.errors import DataFailure, Incomplete, InputError, Interrupted
from bagssl_jax.workdir import read_config


def run(
    program: Callable[..., None],
    usage: str,
    *,
    config_file: bool,
    words: Sequence[str] = (),
    workdir: bool = True,
    extra_flags: Sequence[str] = (),
) -> None:
    """Parses the command line, calls `program` with what it says, and exits where that fails.

    Args:
      program: what to do, given what `parse` returns.
      usage: printed by --help.
      config_file: whether --config=FILE gives the configuration; if not, it is the one that a
        training left in the workdir. --config.KEY=VALUE overrides either.
      words: what the words before the flags say.
      workdir: whether --workdir=DIR is needed.
      extra_flags: further flags.
    """

    def start():
        program(
            *parse(
                sys.argv,
                config_file=config_file,
                words=words,
                workdir=workdir,
                extra_flags=extra_flags,
            )
        )

    _exit_after(start, usage)


def run_command(
    program: Callable[..., None],
    usage: str,
    *,
    words: Sequence[str] = (),
    options: Mapping[str, str],
) -> None:
    """As `run`, for a program without a configuration.

    Args:
      program: what to do: called with the words in their order, and the options by name.
      usage: printed by --help.
      words: what the words before the flags say.
      options: name of a flag -> its default.
    """

    def start():
        given, argv = _split_words(sys.argv, words)
        values = flags.FlagValues()
        for name, default in options.items():
            flags.DEFINE_string(name, default, 'of this program', flag_values=values)
        rest = _parsed(values, argv)
        if rest[1:]:
            raise InputError(f'{rest[1]!r} is not a flag: write --NAME=VALUE')
        program(*given, **{name: os.path.expanduser(values[name].value) for name in options})

    _exit_after(start, usage)


def parse(
    argv: list[str],
    *,
    config_file: bool,
    words: Sequence[str] = (),
    workdir: bool = True,
    extra_flags: Sequence[str] = (),
) -> tuple[ConfigDict, *tuple[str, ...]]:
    """The configuration with its overrides, locked; the words; the workdir; the extra flags.

    Arguments as for `run`.

    Raises:
      InputError: the command line, or the configuration that it names, is wrong.
    """
    first = flags.FlagValues()
    if workdir:
        flags.DEFINE_string('workdir', '', 'directory of the run', flag_values=first)
    if config_file:
        flags.DEFINE_string('config', '', 'file of the configuration', flag_values=first)
    for name in extra_flags:
        flags.DEFINE_string(name, '', 'of this program', flag_values=first)
    given, argv = _split_words(argv, words)
    overrides = _parsed(first, argv, known_only=True)
    if workdir and not first.workdir:
        raise InputError('--workdir is missing: give --workdir=DIR, the directory of the run')
    if config_file:
        config = _read_file(first.config)
    else:
        config = ConfigDict(_tupled(read_config(os.path.expanduser(first.workdir))))
    _check_keys(overrides[1:], config, None if config_file else ('probe.', 'data.'))

    second = flags.FlagValues()
    config_flags.DEFINE_config_dict('config', config, flag_values=second, sys_argv=overrides)
    defaults = {key: config[key] for key in _flat_keys(config) if isinstance(config[key], tuple)}
    rest = _parsed(second, [_quoted(argument, defaults) for argument in overrides])
    if rest[1:]:
        raise InputError(f'{rest[1]!r} is not a flag: write --config.KEY=VALUE')
    tuples = {key: _like(default, config[key], key) for key, default in defaults.items()}
    config.update_from_flattened_dict(tuples)
    config.data.dir = os.path.expanduser(config.data.dir)  # no shell does so behind an =
    named = [*(['workdir'] if workdir else []), *extra_flags]
    return config.lock(), *given, *(os.path.expanduser(first[name].value) for name in named)


def _exit_after(start: Callable[[], None], usage: str) -> None:
    if {'--help', '-help', '-h'}.intersection(sys.argv):
        print(usage.strip())
    elif status := _status_of(start):
        # Not while an error is handled: its frames would keep batches in shared memory alive.
        sys.exit(status)


def _status_of(start: Callable[[], None]) -> int:
    try:
        start()
    except InputError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except DataFailure as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except Incomplete as rest:
        print(rest, file=sys.stderr)
        return 3
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.number
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    return 0


def _split_words(argv: list[str], words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that follow the program's name, and the command line without them."""
    given = argv[1 : 1 + len(words)]
    if len(given) < len(words) or any(word.startswith('-') for word in given):
        usage = ' '.join(word.upper() for word in words)
        raise InputError(f'{usage} is missing: it comes first, before the flags')
    return given, [argv[0], *argv[1 + len(words) :]]


def _parsed(values: flags.FlagValues, argv: list[str], known_only: bool = False) -> list[str]:
    try:
        return values(argv, known_only=known_only)
    except (flags.Error, TypeError, ValueError) as error:
        raise InputError(str(error).splitlines()[0]) from None


def _read_file(path: str) -> ConfigDict:
    """The configuration of `FILE.py[:argument]`."""
    file = pathlib.Path(path.partition(':')[0])
    if not path or not file.is_file():
        known = sorted(str(file) for file in pathlib.Path('configs').glob('[!_]*.py'))
        problem = f'--config={path}: no such file' if path else '--config is missing'
        raise InputError(f'{problem}; give one of {", ".join(known) or "your configs"}')
    # A configuration imports its neighbours, wherever the program is started from.
    sys.path.append(str(file.resolve().parents[1]))
    values = flags.FlagValues()
    argv = [sys.argv[0], f'--config={path}']
    config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except Exception as error:  # whatever a Python file can raise, or absl's report of it
        message = str(error).strip().splitlines()[-1].removeprefix('bagssl_jax.errors.InputError: ')
        raise InputError(f'--config={path}: {message}') from None
    if not isinstance(values.config, ConfigDict):
        raise InputError(f'--config={path}: its get_config() does not return a ConfigDict')
    return values.config


def _check_keys(overrides: list[str], config: ConfigDict, groups: tuple[str, ...] | None) -> None:
    """Raises InputError for a key that the configuration lacks, or that is not of `groups`."""
    known = _flat_keys(config)
    for argument in overrides:
        match = re.match(r'--?(?:no)?config\.([^=]*)', argument)
        if not match:
            continue
        if match[1] in known:
            if groups and not match[1].startswith(groups):
                raise InputError(
                    f'config.{match[1]} is what the training had; here only config.probe.* and '
                    'config.data.* can be set'
                )
            continue
        if any(key.startswith(f'{match[1]}.') for key in known):
            raise InputError(f'config.{match[1]} is a group of keys: set one of them')

        def likeness(key: str, wanted: str = match[1]) -> float:
            pairs = [(key, wanted), (key.rpartition('.')[2], wanted.rpartition('.')[2])]
            return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

        nearest = max(known, key=likeness)
        raise InputError(f'unknown key config.{match[1]}: did you mean config.{nearest}?')


def _quoted(argument: str, defaults: Mapping[str, tuple]) -> str:
    """A flag of a tuple of words with each of them in quotes, without which 1% is no Python."""
    match = re.fullmatch(r'--?config\.([^=]*)=(.*)', argument)
    if not match or not isinstance(next(iter(defaults.get(match[1], ())), 0), str):
        return argument
    return f'--config.{match[1]}={tuple(_words(match[2]))!r}'


def _words(text: str) -> list[str]:
    return re.findall(r"[^\s,()\[\]'\"]+", text)


def _flat_keys(config: ConfigDict, prefix: str = '') -> list[str]:
    keys = []
    for key, value in config.items():
        nested = isinstance(value, ConfigDict)
        keys += _flat_keys(value, f'{prefix}{key}.') if nested else [prefix + key]
    return keys


def _like(default: tuple, items: tuple, key: str) -> tuple:
    """The items as the type of the default's, exactly; InputError where that cannot be."""
    kind = type(default[0]) if default else str
    if kind is str:
        return tuple(_words(','.join(map(str, items))))
    if not all(isinstance(item, int | float) and kind(item) == item for item in items):
        raise InputError(f'config.{key}={items} must be a tuple of {kind.__name__}')
    if kind is float and len(items) != len(default):  # a range: smallest and largest
        raise InputError(f'config.{key}={items} must have {len(default)} numbers')
    return tuple(kind(item) for item in items)


def _tupled(tree: Any) -> Any:
    """JSON's lists back to the tuples that they were."""
    if isinstance(tree, dict):
        return {key: _tupled(value) for key, value in tree.items()}
    return tuple(tree) if isinstance(tree, list) else tree
