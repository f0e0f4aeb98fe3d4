"""How fast the input pipeline is: each stage alone, all of it, and what it is compared with."""

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from bagssl_jax.benchmarks.pillow_pipeline import PillowPipeline
from bagssl_jax.benchmarks.timing import core_seconds, print_row
from bagssl_jax.data import images, pipeline
from bagssl_jax.data.crops import FixedCrops, MultiCrops, RandomCrops, cut_boxes
from bagssl_jax.data.cut import Pixels
from bagssl_jax.data.datasets import open_dataset
from bagssl_jax.parallel import batch_sharded, global_arrays
from bagssl_jax.progress import waiting
from bagssl_jax.training.setup import set_up


def run(config: ConfigDict) -> None:
    """Prints a JSON object for each stage of the pipeline, for what follows it, and for a peer.

    Alone: 'read' (of files, or of the array that holds the images), 'decode', 'crop' (boxes, and
    slices where nothing is resized), 'resize', 'batch' (all of these, and grain's shuffling and
    batching, one batch after the other), 'transfer' to the devices, 'step' (of training).
    Together: 'total', what training would get, from threads or `data.workers` processes. Beside
    them 'pillow', `PillowPipeline`, whose augmentation is here part of the step.

    Of each: 'images_per_s', 'patches_per_s', 'patches_per_s_per_core' (by the time that all
    threads and processes spent on cores), 'seconds' a batch. Of 'total' also 'workers',
    'share_of_step' (its seconds over the step's) and 'times_pillow' (patches a second and core
    over Pillow's).

    Raises:
      InputError: the configuration cannot be carried out.
    """
    seconds = config.benchmark.data.seconds
    training = set_up(config, open_dataset(config.data))
    source = training.images.source
    size, crop_on = config.data.batch_size, config.data.crop_on
    options = {'seed': config.seed, 'batch_size': size, 'crop_on': crop_on}
    dataset = pipeline.batch_dataset(source, training.crops, **options)
    turns = itertools.count()

    def measured(stage: str, work: Callable[[], Any], **more: Any) -> dict[str, Any]:
        return _measured(stage, work, size, config.patches.count, seconds, **more)

    numbers = [np.random.default_rng(i).permutation(len(source))[:size] for i in range(8)]
    if source.in_memory:
        measured('read', lambda: source.read(numbers[next(turns) % 8]))
        encoded = decoded = source.read(numbers[0]).images
    else:
        measured('read', lambda: [source.encoded(i) for i in numbers[next(turns) % 8].tolist()])
        encoded = [source.encoded(i) for i in numbers[0].tolist()]
        names = [source.name(i) for i in numbers[0].tolist()]
        decoded = list(map(images.decode, encoded, names))
        measured('decode', lambda: list(map(images.decode, encoded, names)))
    for stage, work in _cutting(training.crops, decoded, crop_on != 'host'):
        measured(stage, work)
    measured('batch', lambda: dataset[next(turns)])

    inputs, sharding = dataset[0].inputs, batch_sharded(training.mesh)
    measured('transfer', lambda: jax.block_until_ready(global_arrays(inputs, sharding)))
    on_devices = {**global_arrays(inputs, sharding), **training.shared}
    step = measured('step', _stepper(training, on_devices))
    peers = _pillow(config, training.crops, decoded)

    def by_pillow():
        image = encoded[next(turns) % size]
        return [peer.patches(image, count) for peer, count in peers]

    pillow = _measured(
        'pillow',
        by_pillow,
        1,
        config.patches.count,
        seconds,
    )
    batches = pipeline.train_batches(source, training.crops, **options, workers=config.data.workers)
    for _ in range(4 * max(1, config.data.workers)):  # until what was made in advance is used up
        next(batches)
    total = _rates(lambda: next(batches), size, config.patches.count, seconds)
    batches.close()
    more = {
        'workers': config.data.workers,
        'share_of_step': total['seconds'] / step['seconds'],
        'times_pillow': total['patches_per_s_per_core'] / pillow['patches_per_s_per_core'],
    }
    print_row('data', 'total', {**total, **more})


def _cutting(
    random_crops: RandomCrops, decoded: Pixels, on_device: bool
) -> Iterator[tuple[str, Callable[[], Any]]]:
    rng = np.random.default_rng(0)
    heights, widths = np.array([image.shape[:2] for image in decoded]).T

    def boxes():
        return random_crops.boxes(random_crops.draw(rng, len(decoded)), heights, widths)

    some = boxes()
    if on_device:
        yield 'crop', boxes
    elif not any(resize for _, resize in random_crops.sizes):
        yield 'crop', lambda: cut_boxes(decoded, random_crops, boxes())
    else:
        yield 'crop', boxes
        yield 'resize', lambda: cut_boxes(decoded, random_crops, some)


def _stepper(training, inputs) -> Callable[[], Any]:
    """One step of training after the other, always on the same batch."""
    state = training.state

    def step():
        nonlocal state
        state, metrics = training.program.step(state, inputs)
        jax.block_until_ready(metrics)

    return step


def _pillow(
    config: ConfigDict, random_crops: RandomCrops, decoded: Pixels
) -> list[tuple[PillowPipeline, int]]:
    """What makes the patches of each size, and how many."""
    if isinstance(random_crops, FixedCrops):
        height, width = decoded[0].shape[:2]
        side = random_crops.geometry.side(height, width)
        squares = {'scale': (side**2 / (height * width),) * 2, 'ratio': (1.0, 1.0)}
        side = random_crops.geometry.resize or side
        return [(PillowPipeline(config.augment, **squares, side=side), random_crops.count)]
    parts = [random_crops]
    if isinstance(random_crops, MultiCrops):
        parts = [random_crops.large, random_crops.small]
    return [
        (PillowPipeline(config.augment, scale=p.scale, ratio=p.ratio, side=p.resize), p.count)
        for p in parts
    ]


def _measured(
    stage: str, work: Callable[[], Any], size: int, count: int, at_least: float, **more: Any
) -> dict[str, Any]:
    with waiting(f'timing {stage}'):
        work()  # compiles, fills caches
        rates = _rates(work, size, count, at_least)
    print_row('data', stage, {**rates, **more})
    return rates


def _rates(work: Callable[[], Any], size: int, count: int, at_least: float) -> dict[str, float]:
    """Repeats `work`, which makes `size` images of `count` patches, for `at_least` seconds."""
    done, start, start_cores = 0, time.perf_counter(), core_seconds()
    while not done or (seconds := time.perf_counter() - start) < at_least:
        work()
        done += 1
    return {
        'images_per_s': done * size / seconds,
        'patches_per_s': done * size * count / seconds,
        'patches_per_s_per_core': done * size * count / (core_seconds() - start_cores),
        'seconds': seconds / done,
    }
