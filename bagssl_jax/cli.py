"""How the programs start and end: one line with exit status 2 for what the user got wrong.

Importing what a program needs takes seconds, in which it must be able to end as well. So this file
imports little, and the programs import the rest when they are called.
"""

import contextlib
import os
import re
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from bagssl_jax import signals
from bagssl_jax.errors import (
    DataFailure,
    ElsewhereError,
    Incomplete,
    InputError,
    Interrupted,
    out_of_memory,
)
from bagssl_jax.progress import IMPORTING, waiting

if TYPE_CHECKING:
    from bagssl_jax.group import Group
    from bagssl_jax.options import Option


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
    together: bool = False,
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
      together: whether several processes can run it, as `processes.find_place` says.
    """

    def start(argv):
        from bagssl_jax.command_line import parse

        program(
            *parse(
                argv,
                config_file=config_file,
                words=words,
                workdir=workdir,
                extra_flags=extra_flags,
                settable=settable,
            )
        )

    def help_of(asked, argv):
        from bagssl_jax.command_line import help_of

        return help_of(
            asked, argv, config_file=config_file, settable=None if config_file else settable
        )

    _exit_after(start, usage, outlook, together=together, help_of=help_of)


def run_command(
    load: Callable[[], Callable[..., None]],
    usage: str,
    *,
    outlook: str,
    words: Sequence[str] = (),
    options: Mapping[str, 'Option'],
    together: bool = False,
) -> None:
    """As `run`, for a program without a configuration.

    Args:
      load: gives what to do, imported: called with the words in their order, and the options by
        name.
      usage: printed by --help.
      outlook: as for `run`.
      words: what the words before the flags say.
      options: name of a flag -> its default, whose type its values get: text, a tuple of numbers,
        or False of a --FLAG; or the range of a whole number, with its default.
      together: as for `run`.
    """

    def start(argv):
        from bagssl_jax.options import parse_options

        given, values = parse_options(argv, words=words, options=options)
        with waiting(IMPORTING):
            command = load()
        command(*given, **values)

    _exit_after(start, usage, outlook, together=together)


class _Outcome(NamedTuple):
    """How a program ended: its exit status, and what to say of an error."""

    status: int
    line: str = ''
    error: BaseException | None = None


def _exit_after(
    start: Callable[[list[str]], None],
    usage: str,
    outlook: str,
    *,
    together: bool,
    help_of: Callable[[str, list[str]], str] | None = None,
) -> None:
    asked = [re.fullmatch(r'-h|--?help(?:full)?(?:=(.*))?', argument) for argument in sys.argv]
    if any(asked):
        with _readers_that_leave():
            status = _help(next(filter(None, asked)), usage, help_of)
        sys.exit(status)
    last_words = []
    with signals.ending(outlook, last_words), _readers_that_leave():
        status = _run(start, outlook, last_words, together=together)
    if status:
        # Not while an error is handled: its frames would keep batches in shared memory alive.
        sys.exit(status)


@contextlib.contextmanager
def _readers_that_leave() -> Iterator[None]:
    """Ends the program silently where nobody reads its output any more, as of `... | head`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        poll = select.poll()
        poll.register(sys.stdout, 0)
        if not any(event & select.POLLERR for _, event in poll.poll(0)):
            raise  # the pipe was another
        # At its end the interpreter would try once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _help(asked: re.Match[str], usage: str, help_of: Callable[[str, list[str]], str] | None) -> int:
    """Prints the usage, and what there is to say of the configuration's keys; the exit status."""
    word = asked[1] or ('all' if 'helpfull' in asked[0] else '')
    if not word:
        print(usage.strip())
    if help_of is None:
        return 0
    argv = [argument for argument in sys.argv if argument != asked[0]]
    try:
        print(help_of(word, argv))
    except InputError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


def _run(
    start: Callable[[list[str]], None],
    outlook: str,
    last_words: list[Callable[[int, str], None]],
    *,
    together: bool,
) -> int:
    """Runs the program, in a group of processes if it is to be in one; the exit status."""
    group, argv = None, sys.argv
    if together:
        from bagssl_jax.command_line import split_place

        try:
            place, workdir, argv = split_place(sys.argv, os.environ)
            if place is not None:
                from bagssl_jax.group import join

                group = join(place, workdir)
                last_words.append(group.tell)
        except InputError as error:
            print(f'error: {error}', file=sys.stderr)
            return 2
    return _ended(_outcome_of(lambda: start(argv), outlook), group)


def _ended(outcome: _Outcome, group: 'Group | None') -> int:
    """Says how it ended, and leaves the group; the exit status."""
    status, line, error = outcome
    if group is not None and error is not None and not hasattr(error, 'alike'):
        group.fail(error, status, line)
    if line:
        print(line, file=sys.stderr)
    elif error is not None and group is None:
        raise error
    elif error is not None:
        traceback.print_exception(error)
    if group is not None:
        group.finish()
    return status


def _outcome_of(start: Callable[[], None], outlook: str) -> _Outcome:
    try:
        start()
    except InputError as error:
        return _Outcome(2, f'error: {error}', error)
    except DataFailure as error:
        return _Outcome(1, f'error: {error}', error)
    except ElsewhereError as error:
        return _Outcome(error.status, str(error), error)
    except Incomplete as rest:
        return _Outcome(3, str(rest), rest)
    except Interrupted as stop:
        return _Outcome(128 + stop.number, str(stop), stop)
    except KeyboardInterrupt as stop:  # whose number `signals.unwinding` gives
        number = signal.Signals(*stop.args or (signal.SIGINT,))
        return _Outcome(128 + number, f'stopped by {number.name}: {outlook}', stop)
    except Exception as error:
        if shortage := out_of_memory(error):
            return _Outcome(2, f'error: {shortage}', error)
        return _Outcome(1, '', error)
    return _Outcome(0)
