"""How fast training is here: the step alone, and with the pipeline that feeds it."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bagssl_jax.benchmarks.measured import compile_measured, print_rate
from bagssl_jax.benchmarks.timing import (
    clocked,
    core_seconds,
    print_row,
    summary,
)
from bagssl_jax.data.datasets import open_dataset
from bagssl_jax.errors import check_known
from bagssl_jax.progress import waiting
from bagssl_jax.training.feed import input_batches
from bagssl_jax.training.setup import Training, set_up
from bagssl_jax.training.steps import Inputs

STAGES = ('step', 'total')


def run(config: ConfigDict) -> None:
    """Trains for `benchmark.train.steps` steps a stage, writes no file, and prints JSON objects.

    'matmul', the rate of a matrix product on the same devices, of `encoder.dtype`: what the others'
    utilisation is of; see `matrix_rate`. Then those of `benchmark.train.stages`: 'step', the
    compiled step on one batch that lies on the devices; 'total', the step and the pipeline
    together as the training loop runs them, without what it logs and saves.

    Of each: 'seconds' a step, the median, and its 'quartiles', with two steps under way as in the
    loop; 'images_per_s' and 'patches_per_s', of the median; 'operations' a step over all devices,
    of matrix products and convolutions, as `matrix_operations` counts them, and 'utilisation',
    these a second over the rate of 'matmul'; the memory, as `peak_memory` has it;
    'compile_seconds', of the one program of both, or of finding it in JAX's compilation cache.

    Of 'total' also 'share_waiting', of the loop's time in which it waited for a batch (on an
    accelerator, in part at work on the step before); 'workers'; 'patches_per_s_per_core', by the
    time that all threads and processes spent on cores; and after 'step', 'times_step', its seconds
    over that one's. Each step is a call of the devices, whatever `train.steps_per_execution` is.

    Raises:
      InputError: the configuration cannot be carried out, or does not fit into memory.
    """
    settings = config.benchmark.train
    for name in settings.stages:
        check_known('benchmark.train.stages', name, STAGES)
    training = set_up(config, open_dataset(config.data))
    mesh, state = training.mesh, training.state
    training = training._replace(state=None)  # or its arrays would stay beside the step's
    rate = print_rate('train', mesh, config.encoder.dtype)
    size = config.data.batch_size
    of_step = {'images': size, 'patches': size * config.patches.count}

    with contextlib.closing(_batches(config, training)) as batches:
        inputs = next(batches)
        traced = training.program.step.trace(state, inputs)
        program = compile_measured(traced, f'a step of {size} images', mesh=mesh, rate=rate)
        advance = _Steps(program.run, state)
        del state

        def row(seconds: np.ndarray) -> dict[str, Any]:
            found = summary(seconds)
            return {**found, **program.row(found['seconds'], **of_step)}

        alone = None
        if 'step' in settings.stages:
            with waiting(f'timing {settings.steps:,} steps alone'):
                alone = row(clocked(lambda: advance(inputs), warm=2, steps=settings.steps))
            print_row('train', 'step', alone)
        if 'total' in settings.stages:
            with waiting(f'timing {settings.steps:,} steps with the pipeline'):
                seconds, waited, cores = _with_pipeline(config, advance, batches)
            found = row(seconds)
            more = {
                'share_waiting': waited / seconds.sum(),
                'workers': config.data.workers,
                'patches_per_s_per_core': of_step['patches'] / cores,
            }
            if alone:
                more['times_step'] = found['seconds'] / alone['seconds']
            print_row('train', 'total', {**found, **more})


def _batches(config: ConfigDict, training: Training) -> Iterator[Inputs]:
    """What the step takes, on the devices."""
    single = itertools.repeat(range(1))
    with contextlib.closing(input_batches(config, training, 0, single, longest=1)) as batches:
        for inputs, _ in batches:
            yield {**inputs, **training.shared}


class _Steps:
    """Steps of one training, one after the other."""

    def __init__(self, step: Callable[[Any, Any], tuple[Any, Any]], state: Any):
        self._step = step
        self._state = state  # which each step donates to the next

    def __call__(self, inputs: Any) -> Any:
        self._state, metrics = self._step(self._state, inputs)
        return metrics


def _with_pipeline(
    config: ConfigDict, advance: _Steps, batches: Iterator[Inputs]
) -> tuple[np.ndarray, float, float]:
    """Seconds of each step, those waited for batches in all, and cores' seconds a step."""
    waits = []

    def on_the_next() -> Any:
        start = time.perf_counter()
        inputs = next(batches)
        waits.append(time.perf_counter() - start)
        return advance(inputs)

    steps = config.benchmark.train.steps
    # Until what was made in advance is used up.
    clocked(on_the_next, warm=0, steps=4 * max(1, config.data.workers))
    waits.clear()
    start = core_seconds()
    seconds = clocked(on_the_next, warm=0, steps=steps)
    # One step more was taken than is clocked.
    return seconds, sum(waits[1:]), (core_seconds() - start) / (steps + 1)
