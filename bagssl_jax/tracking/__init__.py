"""Where else a run can be followed, beside its own files: Weights & Biases, MLflow."""

from collections.abc import Callable, Mapping
from typing import Any

from bagssl_jax import processes
from bagssl_jax.errors import InputError, check_known
from bagssl_jax.records import note
from bagssl_jax.runs import Run
from bagssl_jax.tracking.mlflow import Mlflow
from bagssl_jax.tracking.tracker import Service, Tracker
from bagssl_jax.tracking.wandb import Wandb

# Name -> what makes a service, and refuses where it cannot.
TRACKERS: dict[str, Callable[[], Service]] = {'wandb': Wandb, 'mlflow': Mlflow}


def make_tracker(config: Mapping[str, Any], run: Run, *, is_needed: bool = True) -> Tracker:
    """The tracker that `train.tracker` names, of the first process; else one that does nothing.

    Nothing is written, and no run is begun.

    Args:
      config: the resolved configuration, nested.
      run: what is followed.
      is_needed: whether a tracker that cannot be is refused; else it is left out, with a line.

    Raises:
      InputError: there is no such tracker, its library is not installed, or it needs an account.
    """
    name = config['train']['tracker']
    if not name:
        return Tracker(run)
    check_known('train.tracker', name, TRACKERS)
    if not processes.is_first():
        return Tracker(run)
    try:
        return Tracker(run, name, TRACKERS[name](), config)
    except InputError as error:
        if is_needed:
            raise
        note(f'{name} is left out: {error}')
        return Tracker(run)
