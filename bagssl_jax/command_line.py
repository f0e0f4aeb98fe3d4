"""The command line of a program with a configuration, and of one among several processes."""

import difflib
import itertools
import math
import os
import pathlib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from bagssl_jax import keys, processes
from bagssl_jax.configurations import CHOICES, flat
from bagssl_jax.defaults import check_ranges, declared, get_config
from bagssl_jax.errors import InputError, check_known
from bagssl_jax.options import parsed, split_words
from bagssl_jax.ranges import Range
from bagssl_jax.runs import Run


def parse(
    argv: list[str],
    *,
    config_file: bool,
    words: Sequence[str] = (),
    workdir: bool = True,
    extra_flags: Sequence[str] = (),
    settable: Sequence[str] = ('probe', 'data'),
) -> tuple[Any, ...]:
    """The configuration with its overrides, locked; the words; the Run; the extra flags.

    Arguments as for `cli.run`.

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
    given, argv = split_words(argv, words)
    overrides = parsed(first, argv, known_only=True)
    run = Run.at(first.workdir) if workdir else None
    config = _read_file(first.config) if config_file else ConfigDict(run.read_config())
    overrides = [overrides[0], *_at_chosen_entries(overrides[1:], config.to_dict())]
    _check_keys(overrides[1:], flat(config.to_dict()), None if config_file else settable)

    second = flags.FlagValues()
    config_flags.DEFINE_config_dict('config', config, flag_values=second, sys_argv=overrides)
    defaults = {
        key: value for key, value in flat(config.to_dict()).items() if isinstance(value, tuple)
    }
    arguments = _last_of_tuples(overrides, defaults)
    rest = parsed(second, [_quoted(argument, defaults) for argument in arguments])
    if rest[1:]:
        raise InputError(f'{rest[1]!r} is not a flag: write --config.KEY=VALUE')
    kinds = _kinds_of_items(defaults)
    tuples = {key: _like(kinds[key], config[key], key) for key in defaults}
    config.update_from_flattened_dict(tuples)
    check_ranges(config.to_dict())
    config.data.dir = os.path.expanduser(config.data.dir)  # no shell does so behind an =
    return (
        config.lock(),
        *given,
        *([run] if workdir else []),
        *(first[name].value for name in extra_flags),
    )


def help_of(
    word: str, argv: list[str], *, config_file: bool, settable: Sequence[str] | None
) -> str:
    """What --help says of the configuration's keys.

    Args:
      word: as for `keys.explain`; '' for an overview.
      argv: the command line without --help. The values are those of the configuration that it
        names, where it names one, else the defaults.
      config_file: whether that is --config=FILE; if not, it is a run's.
      settable: groups of keys that can be set; None for all.

    Raises:
      InputError: there is no such key, file or run.
    """
    first = flags.FlagValues()
    flags.DEFINE_string('config' if config_file else 'workdir', '', 'as above', flag_values=first)
    parsed(first, argv, known_only=True)
    config, whose = get_config().to_dict(), 'defaults'
    if config_file and first.config:
        config, whose = _read_file(first.config).to_dict(), f'values in {first.config}'
    elif not config_file and first.workdir:
        config, whose = Run.at(first.workdir).read_config(), f'values in {first.workdir}'
    if word:
        return keys.explain(word, config, settable)
    return (
        f'\nKeys, each to be set by --config.KEY=VALUE, and their {whose}:\n\n'
        f'{keys.overview(config, settable)}\n\n'
        '--help=WORD says what keys mean, of a group, or with the word in their name or their '
        'meaning:\n--help=data, --help=batch_size, --help=seconds; --help=all of all'
    )


def split_place(
    argv: list[str], environ: Mapping[str, str]
) -> tuple[processes.Place | None, str, list[str]]:
    """Where this process stands among several, --workdir, and the command line without the former.

    Raises:
      InputError: as `processes.find_place` does.
    """
    flags_of_place, workdir = flags.FlagValues(), flags.FlagValues()
    for name in processes.FLAGS:
        flags.DEFINE_string(name, '', 'of several processes', flag_values=flags_of_place)
    flags.DEFINE_string('workdir', '', 'directory of the run', flag_values=workdir)
    rest = parsed(flags_of_place, argv, known_only=True)
    parsed(workdir, rest, known_only=True)
    given = {name: flags_of_place[name].value for name in processes.FLAGS}
    return processes.find_place(given, environ), workdir.workdir, rest


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
        if 'since the config is locked' in message:  # ml_collections lists all keys that there are
            message = message.strip('"\'').partition('. Other fields')[0]
        raise InputError(f'--config={path}: {message}') from None
    config = values.config
    if not isinstance(config, ConfigDict):
        raise InputError(f'--config={path}: its get_config() does not return a ConfigDict')
    # Of a file that does not start from the defaults, which are locked.
    found, known = flat(config.to_dict()), flat(get_config().to_dict())
    for key in found:
        if key not in known:
            raise InputError(f'--config={path}: {_unknown(key, known)}')
    for key in known:
        if key not in found:
            raise InputError(f'--config={path} lacks {key}: start from bagssl_jax.defaults')
    return config


def _at_chosen_entries(overrides: list[str], config: Mapping[str, Any]) -> list[str]:
    """--config.encoder.width=4 as --config.encoder.tiny.width=4, where tiny is chosen, and so on.

    What the group has under the name that is given stays, and so does what the entry lacks.
    """
    names = {group: config[group]['name'] for group in CHOICES}
    for argument, following in itertools.zip_longest(overrides, overrides[1:]):
        flag, is_with_value, value = argument.partition('=')
        match = re.fullmatch(r'--?config\.(\w+)\.name', flag)
        if match and match[1] in names:
            names[match[1]] = value if is_with_value else following

    def placed(argument: str) -> str:
        match = re.match(r'(--?(?:no)?config\.(\w+)\.)(\w+)(?=$|=)', argument)
        if not match or match[2] not in names or match[3] in config[match[2]]:
            return argument
        group, name = match[2], names[match[2]]
        entries = [key for key, value in config[group].items() if isinstance(value, dict)]
        check_known(group, name, entries)
        if match[3] not in config[group][name]:
            return argument
        return f'{match[1]}{name}.{argument[match.start(3) :]}'

    return [placed(argument) for argument in overrides]


def _check_keys(
    overrides: list[str], known: Mapping[str, Any], settable: Sequence[str] | None
) -> None:
    """Raises InputError for a key that the configuration lacks, or that is in no settable group."""
    for argument in overrides:
        match = re.match(r'--?(?:no)?config\.([^=]*)', argument)
        if not match:
            continue
        key = match[1]
        if isinstance(known.get(key), dict) or any(name.startswith(f'{key}.') for name in known):
            raise InputError(f'config.{key} is a group of keys: set one of them')
        if key not in known:
            raise InputError(_unknown(key, known))
        if settable is not None and key.partition('.')[0] not in settable:
            groups = [f'config.{group}.*' for group in settable]
            raise InputError(
                f'config.{key} is what the training had; here only {", ".join(groups[:-1])} and '
                f'{groups[-1]} can be set'
            )


def _unknown(key: str, known: Iterable[str]) -> str:
    def likeness(candidate: str) -> tuple[float, float]:
        pairs = [(candidate, key), (candidate.rpartition('.')[2], key.rpartition('.')[2])]
        ratios = [difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs]
        return max(ratios), sum(ratios)

    return f'unknown key config.{key}: did you mean config.{max(known, key=likeness)}?'


def _last_of_tuples(overrides: list[str], defaults: Mapping[str, tuple]) -> list[str]:
    """The command line with the last value alone of every tuple, as --config.KEY=VALUE.

    Of other keys absl takes the last one itself, but it would join the tuples.
    """
    arguments, values = [], {}
    rest = iter(overrides)
    for argument in rest:
        match = re.fullmatch(r'--?config\.([^=]*)(=.*)?', argument, re.DOTALL)
        if not match or match[1] not in defaults:
            arguments.append(argument)
        elif match[2]:
            values[match[1]] = argument
        elif (following := next(rest, None)) is not None:
            values[match[1]] = f'{argument}={following}'
        else:
            arguments.append(argument)  # whose value is missing, as absl will say
    return [*arguments, *values.values()]


def _quoted(argument: str, defaults: Mapping[str, tuple]) -> str:
    """A flag of a tuple of words with each of them in quotes, without which 1% is no Python."""
    match = re.fullmatch(r'--?config\.([^=]*)=(.*)', argument)
    if not match or not isinstance(next(iter(defaults.get(match[1], ())), 0), str):
        return argument
    return f'--config.{match[1]}={tuple(_words(match[2]))!r}'


def _words(text: str) -> list[str]:
    return re.findall(r"[^\s,()\[\]'\"]+", text)


def _kinds_of_items(defaults: Mapping[str, tuple]) -> dict[str, type]:
    """Of what type the items of each tuple are; floats, of numbers whose default is no item."""
    ranges = flat(declared())
    kinds = {}
    for key, default in defaults.items():
        is_number = isinstance(ranges.get(key), Range)
        known = ranges[key].default if is_number else default
        kinds[key] = type(known[0]) if known else float if is_number else str
    return kinds


def _like(kind: type, items: tuple, key: str) -> tuple:
    """The items as that type, exactly; InputError where that cannot be."""
    if kind is str:
        return tuple(_words(','.join(map(str, items))))
    items = () if items == ('',) else items  # --config.KEY= with nothing behind it
    numbers = [item for item in items if isinstance(item, int | float)]
    # Numbers that are none, infinite or huge are left to the range of the key.
    whole = all(isinstance(x, int) or not math.isfinite(x) or x == int(x) for x in numbers)
    if len(numbers) < len(items) or (kind is int and not whole):
        raise InputError(f'config.{key}={items} must be a tuple of {kind.__name__}')
    return tuple(kind(x) if -1e300 < x < 1e300 else x for x in numbers)
