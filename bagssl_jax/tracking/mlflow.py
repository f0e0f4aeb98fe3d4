"""MLflow. Its own variables say where: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME."""

import logging
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from bagssl_jax.configurations import flat
from bagssl_jax.errors import InputError
from bagssl_jax.runs import Run
from bagssl_jax.tracking.tracker import Row

EXPERIMENT = 'bagssl_jax'  # where MLFLOW_EXPERIMENT_NAME names none
LONGEST, AT_ONCE = 500, 100  # characters of a parameter, and parameters a call: of every server
STATUS = {'finished': 'FINISHED', 'stopped': 'KILLED', 'failed': 'FAILED'}


class Mlflow:
    """A service as `tracker.Service` has it."""

    def __init__(self) -> None:
        """
        Raises:
          InputError: mlflow is not installed.
        """
        try:
            import mlflow
        except ImportError:
            raise InputError(
                "train.tracker='mlflow' needs mlflow: pip install '.[mlflow]'"
            ) from None
        self._mlflow = mlflow
        # Which tells of every retry; what comes of the last one is said once.
        logging.getLogger('urllib3.connectionpool').setLevel(logging.ERROR)
        self._client = self._run_id = None

    def open(self, run: Run, known: str | None, config: Mapping[str, Any]) -> tuple[str, str]:
        """As `tracker.Service` says. Where the server does not know the run, it gets a new one."""
        self._client = client = self._mlflow.MlflowClient()
        name = os.environ.get('MLFLOW_EXPERIMENT_NAME', EXPERIMENT)
        experiment = client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
        self._run_id = known if known and self._knows(known) else None
        if self._run_id:
            client.update_run(self._run_id, status='RUNNING')
        else:
            created = client.create_run(experiment_id, run_name=run.directory.name)
            self._run_id = created.info.run_id
            # Which cannot be changed later.
            parameters = [
                self._mlflow.entities.Param(key, str(value)[:LONGEST])
                for key, value in flat(config).items()
            ]
            for i in range(0, len(parameters), AT_ONCE):
                client.log_batch(self._run_id, params=parameters[i : i + AT_ONCE])
        return self._run_id, f'experiment {name} in {client.tracking_uri}'

    def _knows(self, run_id: str) -> bool:
        try:
            found = self._client.get_run(run_id)
        except self._mlflow.exceptions.MlflowException as error:
            if error.error_code != 'RESOURCE_DOES_NOT_EXIST':
                raise
            return False
        return found.info.lifecycle_stage == 'active'

    def log(self, step: int, row: Row) -> None:
        """As `tracker.Service` says."""
        now = int(1000 * time.time())
        metrics = [
            self._mlflow.entities.Metric(re.sub(r'[^\w./ -]', '_', name), value, now, step)
            for name, value in row.items()
            if value is not None
        ]
        for i in range(0, len(metrics), AT_ONCE):
            self._client.log_batch(self._run_id, metrics=metrics[i : i + AT_ONCE])

    def conclude(self, step: int, numbers: Mapping[str, float], report: bytes | None) -> None:
        """As `tracker.Service` says."""
        self.log(step, numbers)
        if report is not None:
            self._client.log_text(self._run_id, report.decode(), 'report.html')

    def close(self, status: str) -> None:
        """As `tracker.Service` says."""
        self._client.set_terminated(self._run_id, STATUS[status])

    def abandon(self) -> None:
        """As `tracker.Service` says: nothing of it outlives the thread that is left."""
