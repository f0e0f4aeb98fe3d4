"""One HTML file of what a run's files say. It knows no JAX."""

import dataclasses
import sys

from bagssl_jax import processes
from bagssl_jax.progress import waiting
from bagssl_jax.reporting.found import read_run
from bagssl_jax.reporting.page import page
from bagssl_jax.runs import Run

NAME = 'report.html'


def end_with_report(run: Run) -> None:
    """Writes the report of a run that a program has worked on, and says where it is.

    Raises:
      InputError: it cannot be written.
    """
    if processes.is_first():
        with waiting('writing the report'):
            write_report(run)
        print(f'report: {run.directory / NAME}', file=sys.stderr)


def write_report(run: Run, other: Run | None = None) -> None:
    """Writes report.html into a run's directory, made of the run's files alone.

    Args:
      run: what is reported; finished, under way, imported, or of an older version.
      other: a run to show beside it; None for the one alone.

    Raises:
      InputError: there is no run in a directory, or the report cannot be written.
    """
    found = [read_run(run)]
    if other is not None:
        found += [read_run(other)]
        found = [
            dataclasses.replace(one, name=f'{letter} \N{MIDDLE DOT} {one.name}')
            for letter, one in zip('AB', found, strict=True)
        ]
    run.write(NAME, page(found))
