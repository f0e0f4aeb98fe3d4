"""Makes one HTML file of what the files of a run say: DIR/report.html.

    python -m bagssl_jax.report --workdir=DIR [--compare=OTHER_DIR]

Curves, accuracies, pictures, settings, and what was not measured, in a file that needs no network:
of a run that is finished, under way, imported, or of an older version. --compare=OTHER_DIR puts
another run beside it, and marks the settings that differ.
"""

from collections.abc import Callable

from bagssl_jax import cli


def load() -> Callable[..., None]:
    from bagssl_jax.reporting import NAME, write_report
    from bagssl_jax.runs import Run

    def report(*, workdir: str, compare: str) -> None:
        run = Run.at(workdir)
        write_report(run, Run.at(compare) if compare else None)
        print(run.directory / NAME)

    return report


if __name__ == '__main__':
    cli.run_command(
        load,
        __doc__,
        outlook='the same command starts anew',
        options={'workdir': '', 'compare': ''},
    )
