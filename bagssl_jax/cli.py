"""How the programs start and end: one line with exit status 2 for what the user got wrong.

Importing what a program needs takes seconds, in which it must be able to end as well. So this file
imports little, and the programs import the rest when they are called.
"""

import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from bagssl_jax import signals
from bagssl_jax.errors import DataFailure, Incomplete, InputError, Interrupted, out_of_memory

if TYPE_CHECKING:
    from bagssl_jax.command_line import Option


def run(
    program: Callable[..., None],
    usage: str,
    *,
    outlook: str,
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
      outlook: said where a signal ends the program: what stays, and how to go on.
      config_file: whether --config=FILE gives the configuration; if not, it is the one that a
        training left in the workdir. --config.KEY=VALUE overrides either.
      words: what the words before the flags say.
      workdir: whether --workdir=DIR is needed.
      extra_flags: further flags.
      settable: groups of a training's configuration that can still be overridden.
    """

    def start():
        from bagssl_jax.command_line import parse

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

    _exit_after(start, usage, outlook)


def run_command(
    load: Callable[[], Callable[..., None]],
    usage: str,
    *,
    outlook: str,
    words: Sequence[str] = (),
    options: Mapping[str, 'Option'],
) -> None:
    """As `run`, for a program without a configuration.

    Args:
      load: gives what to do, imported: called with the words in their order, and the options by
        name.
      usage: printed by --help.
      outlook: as for `run`.
      words: what the words before the flags say.
      options: name of a flag -> its default, whose type its values get: text, or a tuple of
        numbers; or the range of a whole number, with its default.
    """

    def start():
        from bagssl_jax.command_line import parse_options

        given, values = parse_options(sys.argv, words=words, options=options)
        load()(*given, **values)

    _exit_after(start, usage, outlook)


def _exit_after(start: Callable[[], None], usage: str, outlook: str) -> None:
    if {'--help', '-help', '-h'}.intersection(sys.argv):
        print(usage.strip())
        return
    with signals.ending(outlook):
        status = _status_of(start, outlook)
    if status:
        # Not while an error is handled: its frames would keep batches in shared memory alive.
        sys.exit(status)


def _status_of(start: Callable[[], None], outlook: str) -> int:
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
    except KeyboardInterrupt as stop:  # whose number `signals.unwinding` gives
        number = signal.Signals(*stop.args or (signal.SIGINT,))
        print(f'stopped by {number.name}: {outlook}', file=sys.stderr)
        return 128 + number
    except Exception as error:
        if not (shortage := out_of_memory(error)):
            raise
        print(f'error: {shortage}', file=sys.stderr)
        return 2
    return 0
