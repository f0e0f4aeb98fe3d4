"""How the programs start and end: one line with exit status 2 for what the user got wrong."""

import sys
from collections.abc import Callable, Mapping, Sequence

from bagssl_jax.command_line import Option, parse, parse_options
from bagssl_jax.errors import DataFailure, Incomplete, InputError, Interrupted, out_of_memory


def run(
    program: Callable[..., None],
    usage: str,
    *,
    config_file: bool,
    words: Sequence[str] = (),
    workdir: bool = True,
    extra_flags: Sequence[str] = (),
    settable: Sequence[str] = ('probe', 'data'),
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
      settable: groups of a training's configuration that can still be overridden.
    """

    def start():
        program(
            *parse(
                sys.argv,
                config_file=config_file,
                words=words,
                workdir=workdir,
                extra_flags=extra_flags,
                settable=settable,
            )
        )

    _exit_after(start, usage)


def run_command(
    program: Callable[..., None],
    usage: str,
    *,
    words: Sequence[str] = (),
    options: Mapping[str, Option],
) -> None:
    """As `run`, for a program without a configuration.

    Args:
      program: what to do: called with the words in their order, and the options by name.
      usage: printed by --help.
      words: what the words before the flags say.
      options: name of a flag -> its default, whose type its values get: text, a whole number, or
        a tuple of numbers.
    """

    def start():
        given, values = parse_options(sys.argv, words=words, options=options)
        program(*given, **values)

    _exit_after(start, usage)


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
    except Exception as error:
        if not (shortage := out_of_memory(error)):
            raise
        print(f'error: {shortage}', file=sys.stderr)
        return 2
    return 0
