"""Weights & Biases. Its own variables say where and how: WANDB_PROJECT, WANDB_MODE=offline, ..."""

import atexit
import contextlib
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import psutil

from bagssl_jax.errors import InputError
from bagssl_jax.runs import Run
from bagssl_jax.storage import is_remote
from bagssl_jax.tracking.tracker import Row

PROJECT = 'bagssl_jax'  # where WANDB_PROJECT names none


class Wandb:
    """A service as `tracker.Service` has it.

    Steps are a metric, which all others are drawn against: wandb's own steps cannot go back, as a
    run does that goes on from its checkpoint. Offline, its files lie in the run's directory.
    """

    def __init__(self) -> None:
        """
        Raises:
          InputError: wandb is not installed, or is to be online and knows no account.
        """
        try:
            import wandb
        except ImportError:
            raise InputError("train.tracker='wandb' needs wandb: pip install '.[wandb]'") from None
        self._wandb = wandb
        mode = wandb.setup(settings=wandb.Settings(silent=True)).settings.mode
        # Here, because a run would ask for a key on the terminal.
        if mode in ('online', 'shared') and not wandb.login(prompt=False, verify=False):
            raise InputError(
                "train.tracker='wandb' needs an account: wandb login, or set WANDB_API_KEY, or "
                'WANDB_MODE=offline'
            )
        self._run = None

    def open(self, run: Run, known: str | None, config: Mapping[str, Any]) -> tuple[str, str]:
        """As `tracker.Service` says."""
        self._run = self._wandb.init(
            project=os.environ.get('WANDB_PROJECT', PROJECT),
            id=known,
            resume='allow' if known else None,
            name=None if known else run.directory.name,
            dir=None if is_remote(run.directory) else str(run),
            config=dict(config),
            allow_val_change=True,
            settings=self._wandb.Settings(console='off'),  # which is this program's own
        )
        self._run.define_metric('step')
        self._run.define_metric('*', step_metric='step')
        if self._run.offline:
            return self._run.id, f'offline: wandb sync {os.path.dirname(self._run.dir)}'
        return self._run.id, self._run.url

    def log(self, step: int, row: Row) -> None:
        """As `tracker.Service` says."""
        self._run.log({'step': step, **row})

    def conclude(self, step: int, numbers: Mapping[str, float], report: bytes | None) -> None:
        """As `tracker.Service` says."""
        self._run.summary.update(dict(numbers))
        if report is not None:
            artifact = self._wandb.Artifact(f'report-{self._run.id}', 'report')
            with artifact.new_file('report.html', 'wb') as file:
                file.write(report)
            self._run.log_artifact(artifact)

    def close(self, status: str) -> None:
        """As `tracker.Service` says."""
        self._run.finish(exit_code=0 if status == 'finished' else 1)

    def abandon(self) -> None:
        """As `tracker.Service` says."""
        # When Python exits, wandb tells its process to end, and waits until that has sent all or
        # gives up, which takes minutes.
        exiting = threading.Event()
        atexit.register(exiting.set)
        threading.Thread(target=_end_process, args=(exiting,), daemon=True).start()


def _end_process(exiting: threading.Event) -> None:
    """Ends the process that sends everything, soon after Python begins to exit."""
    exiting.wait()
    time.sleep(0.5)
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.name().startswith('wandb'):
                child.kill()
