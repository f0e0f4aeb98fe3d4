"""What becomes of steps whose loss, gradient or result is not finite."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bagssl_jax.errors import InputError, alike
from bagssl_jax.training.state import TrainState

ON_NONFINITE = ('stop', 'skip')
SKIPPED = 'update_skipped'  # the metric of a step that says so: 0 or 1
Metrics = dict[str, jax.Array]
Row = dict[str, float]


def unless_nonfinite(
    new: TrainState, old: TrainState, metrics: Metrics
) -> tuple[TrainState, Metrics]:
    """The new state where it and the metrics are finite, else the old one, and `SKIPPED`.

    Nothing of a skipped step is in the state but that the number of the step has moved on: the
    next one has another batch, and the optimiser's schedule waits. As optax.apply_if_finite, but
    for the running statistics, the target and the loss, too.
    """
    floats = [x for x in jax.tree.leaves((new, metrics)) if jnp.issubdtype(x.dtype, jnp.floating)]
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats]))
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
    return kept.replace(step=new.step), {**metrics, SKIPPED: 1.0 - finite}


def read_rows(
    under_way: Sequence[tuple[range, Metrics]], *, skipped: int, at_most: int
) -> tuple[list[Row], int]:
    """The metrics of each step of some executions, and how many updates were skipped so far.

    Args:
      under_way: the steps of each execution, and their metrics on the devices.
      skipped: updates before these.
      at_most: updates that may be skipped, of steps that do so.

    Returns:
      A row of every step, empty where its update was skipped; and the number of those.

    Raises:
      InputError: a step that does not skip is not finite, or too many have been skipped.
    """
    rows = []
    for steps, metrics in jax.device_get(under_way):
        for place, step in enumerate(steps):
            row = {name: float(np.ravel(value)[place]) for name, value in metrics.items()}
            is_skipped = row.pop(SKIPPED, None)
            if is_skipped is None:
                refuse_nonfinite(step, row)
            elif is_skipped:
                skipped += 1
                if skipped > at_most:
                    raise _of_all(
                        f'step {step}: {_named(_nonfinite(row))} is not finite, and '
                        f'train.most_skipped={at_most} updates have been skipped. {_ADVICE}'
                    )
                row = {}
            rows.append(row)
    return rows, skipped


def mean_row(rows: Sequence[Row]) -> Row:
    """The mean of every metric over the rows that have it."""
    names = next((row for row in rows if row), {})
    return {name: float(np.mean([row[name] for row in rows if row])) for name in names}


def refuse_nonfinite(step: int, row: Mapping[str, Any]) -> None:
    """Raises InputError, which names the step and the metrics, where some are not finite."""
    if broken := _nonfinite(row):
        raise _of_all(
            f'step {step}: {_named(broken)} is not finite. {_ADVICE}, or, where it was a single '
            'step, go on with train.on_nonfinite=skip'
        )


_ADVICE = (
    'The checkpoints so far are kept: in a new workdir, lower optimizer.learning_rate or lengthen '
    'optimizer.warmup_epochs'
)


def _of_all(message: str) -> Exception:
    """The InputError of every process: their metrics are the same."""
    return alike(InputError(message))


def _nonfinite(row: Mapping[str, Any]) -> list[str]:
    return [name for name, value in row.items() if not math.isfinite(value)]


def _named(broken: Sequence[str]) -> str:
    """Terms by their names; the loss that they make where there is nothing else."""
    return ', '.join(name for name in broken if name != 'loss') or 'loss'
