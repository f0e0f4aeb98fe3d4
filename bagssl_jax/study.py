"""Runs a study, many runs over seeds, and puts what they come to into one table.

    python -m bagssl_jax.study configs/studies/NAME.py --workdir=DIR

Runs are programs of their own, one after the other, each in a folder of DIR; DIR/study.md and
DIR/study.json have means, spreads and paired differences, anew after every run. The same command
again goes on with what is not finished, and tries again what failed.

  --data_dir=DIR     where the data sets are, --config.data.dir of all runs
  --collect=FOLDER   copies the small files of every finished run there, and takes those that are
                     there for finished: so a study goes on where its checkpoints are not
  --task=I --tasks=N runs the variants I, I + N, ... alone, counted from 0; in an array of Slurm
                     jobs found by itself. The folder must be one that all of them see
  --dry_run          prints the commands and runs nothing
  --table            writes the tables and runs nothing
"""

from collections.abc import Callable

from bagssl_jax import cli
from bagssl_jax.ranges import within

OPTIONS = {
    'workdir': '',
    'data_dir': '',
    'collect': '',
    'task': within(-1, 0, 10**6),
    'tasks': within(0, 1, 10**6),
    'dry_run': False,
    'table': False,
}


def load() -> Callable[..., None]:
    from bagssl_jax.studies.program import study

    return study


if __name__ == '__main__':
    cli.run_command(
        load,
        __doc__,
        outlook='what was finished stays; the same command goes on',
        words=('file',),
        options=OPTIONS,
    )
