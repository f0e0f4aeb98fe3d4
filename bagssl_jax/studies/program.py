"""What `python -m bagssl_jax.study` does."""

import os
import pathlib
import shlex
from collections.abc import Mapping

from bagssl_jax.errors import Incomplete, InputError
from bagssl_jax.locks import in_turn
from bagssl_jax.runs import Run
from bagssl_jax.studies.execution import execute
from bagssl_jax.studies.folder import StudyFolder
from bagssl_jax.studies.outcome import outcome, plan
from bagssl_jax.studies.plan import Variant, read_study
from bagssl_jax.studies.table import markdown, summarise


def study(
    file: str,
    *,
    workdir: str,
    data_dir: str,
    collect: str,
    task: int,
    tasks: int,
    dry_run: bool,
    table: bool,
) -> None:
    """Runs the study of a file, or what `dry_run` and `table` say; as bagssl_jax/study.py has it.

    Raises:
      InputError: the command line, the file or what is in the folder is wrong.
      Incomplete: runs failed.
    """
    if not workdir:
        raise InputError('--workdir is missing: give --workdir=DIR, the directory of the study')
    found = read_study(file)
    runs = StudyFolder(workdir, collect)
    own = _own(found.variants, task, tasks, os.environ)
    if dry_run:
        for variant in own:
            for planned in plan(found, runs, variant):
                for command in planned.commands(str(runs.workdir / planned.name), data_dir):
                    print(shlex.join(['python', '-m', *command]))
        return
    Run.at(workdir).check_writable()
    title = pathlib.Path(file).stem

    def write() -> None:
        with in_turn(runs.workdir / 'study.lock'):  # tasks end runs at the same time
            summary = summarise(found, [outcome(found, runs, v) for v in found.variants])
            for folder in filter(None, (runs.workdir, runs.collected)):
                run = Run.at(folder)
                run.write_json('study.json', summary, indent=1)
                run.write('study.md', markdown(title, found, summary).encode())

    write()
    failures = [] if table else execute(found, runs, own, data_dir, write)
    print((runs.workdir / 'study.md').read_text())
    print(runs.workdir / 'study.md')
    if failures:
        raise Incomplete(
            f'{len(failures)} runs failed; the same command tries them again: '
            + '; '.join(name.partition(':')[0] for name in failures)
        )


def _own(
    variants: tuple[Variant, ...], task: int, tasks: int, environ: Mapping[str, str]
) -> list[Variant]:
    """The variants of this task of several; all of them where there is one."""
    if (task < 0) != (tasks < 1):
        raise InputError('--task and --tasks go together: --task=0 --tasks=4')
    if task < 0 and 'SLURM_ARRAY_TASK_ID' in environ:
        first = int(environ.get('SLURM_ARRAY_TASK_MIN', 0))
        task = int(environ['SLURM_ARRAY_TASK_ID']) - first
        tasks = int(environ['SLURM_ARRAY_TASK_COUNT'])
    if task < 0:
        return list(variants)
    if task >= tasks:
        raise InputError(f'--task={task} must be below --tasks={tasks}')
    return list(variants[task::tasks])
