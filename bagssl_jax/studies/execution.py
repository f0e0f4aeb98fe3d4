"""Runs the runs of a study, one after the other: those that are not finished."""

import contextlib
import datetime
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable

from bagssl_jax import signals
from bagssl_jax.errors import InputError
from bagssl_jax.provenance import code_version
from bagssl_jax.runs import Run
from bagssl_jax.studies.folder import RECORD, StudyFolder, shown
from bagssl_jax.studies.outcome import plan
from bagssl_jax.studies.plan import Planned, Study, Variant

LOG = 'log.txt'  # of a run: what its programs print


def execute(
    study: Study,
    runs: StudyFolder,
    variants: list[Variant],
    data_dir: str,
    written: Callable[[], None],
) -> list[str]:
    """Runs what is not finished, of these variants.

    Args:
      study: that they are of.
      runs: where.
      variants: in their order.
      data_dir: as for `Planned.commands`.
      written: called after every run.

    Returns:
      A line for each run that failed; the others were run.

    Raises:
      KeyboardInterrupt: a signal; the run under way has saved where it is.
    """
    failures, tried = [], set()
    device = ''
    for variant in variants:
        # Once its choice is made, a variant has further runs.
        while left := [
            planned
            for planned in plan(study, runs, variant)
            if planned.name not in tried and runs.finished(planned) is None
        ]:
            planned = left[0]
            tried.add(planned.name)
            device = device or _device()
            print(f'{planned.name} ...', file=sys.stderr, flush=True)
            failure = _execute(planned, runs, data_dir, device)
            if failure:
                failures.append(f'{planned.name}: {failure}')
                print(failures[-1], file=sys.stderr, flush=True)
            else:
                runs.collect(planned)
            written()
    return failures


def _execute(planned: Planned, runs: StudyFolder, data_dir: str, device: str) -> str:
    """Runs one run; why it failed, or ''."""
    folder = runs.workdir / planned.name
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    for command in planned.commands(str(folder), data_dir):
        status = _call(command, folder / LOG)
        if status:
            lines = (folder / LOG).read_text(errors='replace').strip().splitlines() or ['']
            return f'exit status {status}: {lines[-1]} (all of it in {folder / LOG})'
    record = {
        'commands': shown(planned),
        'choice': planned.choice,
        'seconds': round(time.monotonic() - start, 1),  # since it was last started
        'device': device,
        'date': datetime.date.today().isoformat(),
        'code': code_version(),
    }
    Run.at(folder).write_json(RECORD, record)
    return ''


def _call(command: list[str], log: pathlib.Path) -> int:
    """The exit status of a program; it ends before this one does, with what it has saved."""
    with open(log, 'ab') as file, signals.unwinding():
        # In a session of its own, Ctrl-C reaches it once: from here.
        process = subprocess.Popen(
            [sys.executable, '-m', *command],
            env={**os.environ, 'TQDM_MININTERVAL': '30'},  # a log wants few lines of a bar
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=600)
            raise


def _device() -> str:
    """What the runs run on: asked of JAX in a process of its own, which frees it again."""
    program = 'import jax; d = jax.devices(); print(len(d), d[0].platform, d[0].device_kind)'
    found = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    if found.returncode:
        lines = found.stderr.strip().splitlines() or ['']
        raise InputError(f'JAX finds no device: {lines[-1]}')
    count, platform, kind = found.stdout.strip().split(' ', 2)
    if platform == 'cpu':
        return f'{len(os.sched_getaffinity(0))} cores of {_processor()}'
    return f'{count} x {kind}'


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return 'a CPU'
