"""Executions: consecutive steps that the devices run in one call of the host's."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bagssl_jax.data.pipeline import TrainBatch
from bagssl_jax.training.state import TrainState
from bagssl_jax.training.steps import Inputs, Metrics

Step = Callable[[TrainState, Inputs], tuple[TrainState, Metrics]]
Execute = Callable[[TrainState, Inputs, int, Inputs], tuple[TrainState, Metrics]]
Look = Callable[[TrainState, Inputs, int, Inputs], Metrics]


def executions(start: int, total: int, *, longest: int, pauses: Sequence[int]) -> Iterator[range]:
    """The steps from `start` + 1 to `total`, an execution after the other.

    Args:
      start: steps done so far.
      total: the last step.
      longest: steps that an execution has at most.
      pauses: numbers of steps, at whose multiples an execution ends.
    """
    while start < total:
        end = min(start + longest, total, *((start // every + 1) * every for every in pauses))
        yield range(start + 1, end + 1)
        start = end


def stacked(
    batches: Iterable[TrainBatch], counts: Iterable[int], *, longest: int
) -> Iterator[tuple[Inputs, np.ndarray]]:
    """The batches of executions, on the host.

    Args:
      batches: of all steps.
      counts: the number of steps of each execution.
      longest: of them. With 1 the inputs are as `batches` has them; else every array has `longest`
        on a further, leading axis, of which an execution's number are filled.

    Yields:
      The inputs, and int64 [any], what `unreadable` says of all of them.
    """
    batches = iter(batches)
    for count in counts:
        group = list(itertools.islice(batches, count))
        if longest == 1:
            yield group[0]
        else:
            inputs = jax.tree.map(
                lambda *arrays: _padded(arrays, longest), *(batch.inputs for batch in group)
            )
            yield inputs, np.concatenate([batch.unreadable for batch in group])


def make_execute(step: Step, *, longest: int) -> Execute:
    """What runs an execution.

    All lengths are one program, whose loop ends when it is told to: how steps fall into executions
    changes no bit of what is learned, whatever is logged, saved or interrupted in between.

    Args:
      step: (state, inputs) -> (state, metrics), jitted.
      longest: steps of an execution at most. With 1, an execution is a call of `step`.

    Returns:
      (state, inputs as by `stacked`, number of steps, inputs that all steps share) -> (state,
      metrics), the state donated; it has the method `lower` of jitted functions. The metrics are
      [] of one step or [longest], of which the number of steps are meant.
    """
    if longest == 1:

        def single(state, inputs, count, shared):
            return step(state, {**inputs, **shared})

        single.lower = lambda state, inputs, count, shared: step.lower(state, {**inputs, **shared})
        return single

    @functools.partial(jax.jit, donate_argnums=0)
    def execute(state, inputs, count, shared):
        _, metrics = jax.eval_shape(step, state, {**_at(inputs, 0), **shared})
        metrics = jax.tree.map(lambda x: jnp.zeros((longest, *x.shape), x.dtype), metrics)

        def one(place, carried):
            state, metrics = carried
            state, row = step(state, {**_at(inputs, place), **shared})
            return state, jax.tree.map(lambda rows, x: rows.at[place].set(x), metrics, row)

        return jax.lax.fori_loop(0, count, one, (state, metrics))

    return execute


def make_look(spread: Callable[[TrainState, Inputs], Metrics], *, longest: int) -> Look:
    """`spread`, of (state, inputs), on the last batch of an execution; called like an `Execute`."""
    if longest == 1:
        return lambda state, inputs, count, shared: spread(state, {**inputs, **shared})
    return jax.jit(
        lambda state, inputs, count, shared: spread(state, {**_at(inputs, count - 1), **shared})
    )


def _padded(arrays: Sequence[np.ndarray], length: int) -> np.ndarray:
    """[...] each -> [length ...], zero behind the arrays."""
    padded = np.zeros((length, *arrays[0].shape), arrays[0].dtype)
    np.stack(arrays, out=padded[: len(arrays)])
    return padded


def _at(inputs: Inputs, place: Any) -> Inputs:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, place, keepdims=False), inputs)
