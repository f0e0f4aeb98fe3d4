"""The command line of a program without a configuration: words, and options of a few types.

It knows no JAX, so that programs that need none start at once.
"""

import os
from collections.abc import Mapping, Sequence

from absl import flags

from bagssl_jax.errors import InputError
from bagssl_jax.ranges import Range

Option = bool | str | Range | tuple[float, ...]
Value = bool | str | int | tuple[float, ...]


def parse_options(
    argv: list[str], *, words: Sequence[str], options: Mapping[str, Option]
) -> tuple[list[str], dict[str, Value]]:
    """The words, and the options by name; arguments as for `cli.run_command`.

    Raises:
      InputError: the command line is wrong.
    """
    given, argv = split_words(argv, words)
    values = flags.FlagValues()
    for name, default in options.items():
        define = flags.DEFINE_boolean if isinstance(default, bool) else flags.DEFINE_string
        define(name, None, 'of this program', flag_values=values)
    rest = parsed(values, argv)
    if rest[1:]:
        raise InputError(f'{rest[1]!r} is not a flag: write --NAME=VALUE')
    return given, {name: _typed(name, values[name].value, options[name]) for name in options}


def split_words(argv: list[str], words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that follow the program's name, and the command line without them."""
    given = argv[1 : 1 + len(words)]
    if len(given) < len(words) or any(word.startswith('-') for word in given):
        usage = ' '.join(word.upper() for word in words)
        raise InputError(f'{usage} is missing: it comes first, before the flags')
    return given, [argv[0], *argv[1 + len(words) :]]


def parsed(values: flags.FlagValues, argv: list[str], known_only: bool = False) -> list[str]:
    """Lets `values` take their flags from a command line; what is left of it.

    Raises:
      InputError: a flag is unknown, or its value is of another kind.
    """
    try:
        return values(argv, known_only=known_only)
    except (flags.Error, TypeError, ValueError) as error:
        raise InputError(str(error).splitlines()[0]) from None


def _typed(flag: str, text: str | bool | None, default: Option) -> Value:
    """The value of a flag, of the type of its default."""
    if text is None:
        return default.default if isinstance(default, Range) else default
    if isinstance(default, bool):
        return text
    if isinstance(default, str):
        return os.path.expanduser(text)
    try:
        if not isinstance(default, Range):
            return tuple(float(part) for part in text.split(','))
        number = int(text)
    except ValueError:
        is_whole = isinstance(default, Range)
        words = 'a whole number' if is_whole else 'three numbers, as in 0.5,0.5,0.5'
        raise InputError(f'--{flag}={text} must be {words}') from None
    default.check(f'--{flag}', number)
    return number
