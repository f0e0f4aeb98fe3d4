"""What steps are fed with, and what becomes of images that cannot be read."""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from bagssl_jax import processes
from bagssl_jax.data import pipeline
from bagssl_jax.data.reading import unreadable_image
from bagssl_jax.errors import DataFailure, InputError, LostImage, UnreadableImage, WorkerDied
from bagssl_jax.parallel import batch_sharded, prefetch_to_devices, stack_sharded
from bagssl_jax.records import note
from bagssl_jax.training.executions import stacked
from bagssl_jax.training.setup import Training
from bagssl_jax.training.steps import Inputs


def input_batches(
    config: ConfigDict, training: Training, start: int, planned: Iterator[range], longest: int
) -> Iterator[tuple[Inputs, np.ndarray]]:
    """What the planned executions take, on the devices, and the numbers of unreadable images."""
    batches = pipeline.train_batches(
        training.images.source,
        training.crops,
        seed=config.seed,
        batch_size=config.data.batch_size,
        start=start,
        workers=config.data.workers,
        shard=(jax.process_index(), jax.process_count()),
        crop_on=config.data.crop_on,
    )
    sharding = (batch_sharded if longest == 1 else stack_sharded)(training.mesh)
    with contextlib.closing(batches):
        grouped = stacked(batches, map(len, planned), longest=longest)
        yield from prefetch_to_devices(grouped, sharding)


def drawn(
    batches: Iterator[tuple[Inputs, np.ndarray]],
) -> tuple[Inputs | None, list[int], Exception | None]:
    """The next inputs and the numbers of images that cannot be read; or why there are none."""
    try:
        inputs, faults = next(batches)
    except Exception as error:
        return None, [], error
    return inputs, faults[faults >= 0].tolist(), None


def refuse_or_note(training: Training, index: int, on_error: str) -> None:
    """Raises UnreadableImage, or says on standard error that an image is left out."""
    error = unreadable_image(training.images.source, index, min_side=training.crops.min_side)
    if on_error == 'stop':
        raise error
    if processes.is_first():
        note(f'left out: {error}')


def explained(error: Exception, step: int) -> Exception:
    """What to raise where the data failed and `step` is saved."""
    if isinstance(error, LostImage):
        return InputError(
            f'{error}: bring it back, and the same command goes on from step {step}; without it, '
            'train in a new workdir'
        )
    if isinstance(error, UnreadableImage):
        return InputError(
            f'{error}. --config.data.on_error=skip goes on from step {step} without such images'
        )
    if isinstance(error, WorkerDied):
        return DataFailure(
            f'{error} at step {step}, which is saved: the same command goes on from there'
        )
    return error
