"""Where the runs of a study are, and which of them are finished."""

import os
import pathlib
import shlex
from typing import Any

from bagssl_jax import storage
from bagssl_jax.errors import InputError
from bagssl_jax.runs import Run
from bagssl_jax.studies.plan import Planned

RECORD = 'study_run.json'  # of a run that is finished: how it was made
KEPT = ('config.json', 'data.json', 'metrics.jsonl', 'results.json', RECORD)


class StudyFolder:
    """The folder of a study, and one of the small files of its finished runs.

    Args:
      workdir: of the study; every run has a folder in it.
      collected: where finished runs leave what a table and a report need, and where those count as
        finished that are there; '' for nowhere.
    """

    def __init__(self, workdir: str, collected: str = ''):
        if storage.is_remote(workdir):
            raise InputError(f'--workdir={workdir}: a study needs a folder of this machine')
        self.workdir = pathlib.Path(os.path.abspath(workdir))
        self.collected = pathlib.Path(os.path.abspath(collected)) if collected else None

    def finished(self, planned: Planned) -> Run | None:
        """Where the files of a run are, once it is finished.

        Raises:
          InputError: it was made with other settings than are planned, or a file is damaged.
        """
        for place in (self.workdir, self.collected):
            if place is None:
                continue
            run = Run.at(place / planned.name)
            record = run.read_json(RECORD)
            if record is None:
                continue
            made, wanted = record.get('commands'), shown(planned)
            if made != wanted:
                raise InputError(
                    f'{run} was made by other commands than the study now has, '
                    f'{_first_difference(made, wanted)}: take it away, or give another --workdir'
                )
            return run
        return None

    def collect(self, planned: Planned) -> None:
        """Copies the small files of a finished run to where they are collected."""
        if self.collected is None:
            return
        run = Run.at(self.workdir / planned.name)
        for name in KEPT:
            content = run.read(name)
            if content is not None:
                storage.write(Run.at(self.collected / planned.name).directory / name, content)


def shown(planned: Planned) -> list[str]:
    """The commands of a run as one would type them, in whatever folders."""
    return [shlex.join(['python', '-m', *command]) for command in planned.commands('DIR')]


def _first_difference(made: Any, wanted: list[str]) -> str:
    before = {word for line in made or () for word in str(line).split()}
    after = {word for line in wanted for word in line.split()}
    pairs = [' '.join(sorted(words)[:1]) for words in (before - after, after - before)]
    return f'{pairs[0] or "nothing"} and not {pairs[1] or "nothing"}'
