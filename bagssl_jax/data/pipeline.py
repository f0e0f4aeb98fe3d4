"""The grain pipelines: endless batches of random patches, and bags in the source's order.

grain is handed the numbers of images and shuffles, batches, seeds and prefetches those; an image
is read when its batch is made, in the thread or the worker process that makes it.
"""

import contextlib
import dataclasses
import multiprocessing.resource_tracker
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np
from absl import flags

from bagssl_jax.data import crops
from bagssl_jax.data.sources import ArraySource, Source, read_records
from bagssl_jax.errors import InputError, UnreadableImage

MANY_UNREADABLE = 100


class TrainBatch(NamedTuple):
    """One process's part of a global batch, of b images.

    Attributes:
      inputs: {'patches': uint8 [b p s s c]}; or, to be cut on the device, {'images': uint8
        [b h w c], 'boxes': int32 [b p 4]}.
      unreadable: int64 [b], the number of an image that could not be read, and in whose place
        the next one that could is taken; -1 for all others.
    """

    inputs: dict[str, np.ndarray]
    unreadable: np.ndarray


def train_batches(
    source: Source,
    random_crops: crops.RandomCrops,
    *,
    seed: int,
    batch_size: int,
    start: int = 0,
    workers: int = 0,
    shard: tuple[int, int] = (0, 1),
    on_device: bool = False,
) -> Iterator[TrainBatch]:
    """Endless shuffled batches of random patches, from batch number `start` on.

    Batch i depends on (seed, i) alone. An epoch shows every image once, less the last images
    that fill no batch; every epoch has an order and crops of its own. Close the iterator, and
    its workers end.

    Args:
      source: images.
      random_crops: places the patches.
      seed: of the order and the crops.
      batch_size: images in the global batch.
      start: number of the first batch, counted from the beginning of training.
      workers: processes that read and crop; 0 does so in threads of this one.
      shard: (index, count) of the part of each batch that this process wants; the parts of a
        batch, in order, are the global batch.
      on_device: leave the cutting of patches to the device; images must be of one size.
    """
    batches = batch_dataset(
        source, random_crops, seed=seed, batch_size=batch_size, shard=shard, on_device=on_device
    )
    return _prefetched(batches.slice(slice(start, None)), source, workers)


def batch_dataset(
    source: Source,
    random_crops: crops.RandomCrops,
    *,
    seed: int,
    batch_size: int,
    shard: tuple[int, int] = (0, 1),
    on_device: bool = False,
) -> grain.MapDataset:
    """Batch i of `train_batches`, made when element i is asked for."""
    numbers = grain.MapDataset.range(len(source)).seed(seed).shuffle()
    batches = numbers.batch(batch_size, drop_remainder=True)
    # A random map is seeded by the place in the sequence, so that a repeated epoch is another.
    return batches.random_map(_RandomPatches(source, random_crops, shard, on_device)).repeat()


class View(Protocol):
    """What of an image is embedded."""

    def cut(self, images: crops.Images) -> np.ndarray:
        """uint8 [h w c] of each image -> uint8 [b p h w c]."""


@dataclasses.dataclass(frozen=True)
class GridPatches:
    """An even grid of `count` patches; `size`, `scale`, `resize` as in the config's `patches`."""

    count: int
    size: int
    scale: float
    resize: int

    def cut(self, images: crops.Images) -> np.ndarray:
        boxes = []
        for image in images:
            height, width = image.shape[:2]
            side = crops.patch_side(height, width, size=self.size, scale=self.scale)
            boxes.append(crops.grid_boxes(height, width, side=side, count=self.count))
        return crops.cut(images, np.stack(boxes), resize=self.resize)


@dataclasses.dataclass(frozen=True)
class Whole:
    """The full image as its only patch: uint8 [b 1 height width c].

    An image of another size is resized to cover that one, and its center cropped.
    """

    height: int
    width: int

    def cut(self, images: crops.Images) -> np.ndarray:
        return np.stack([crops.covering(image, self.height, self.width)[None] for image in images])


class Bags(NamedTuple):
    """The bags of b images, and the numbers of those that could not be read and are left out."""

    patches: np.ndarray  # uint8 [b p h w c]
    labels: np.ndarray  # int64 [b]
    unreadable: np.ndarray  # int64


def bag_batches(
    source: Source, view: View, *, batch_size: int, workers: int = 0, on_error: str = 'stop'
) -> Iterator[Bags]:
    """Every image's bag once, in the source's order; the last batch may be smaller.

    Args:
      source: images.
      view: what of an image is embedded.
      batch_size: images.
      workers: as in `train_batches`.
      on_error: 'stop' at an unreadable image, or 'skip' it.

    Raises:
      UnreadableImage: there is one, and `on_error` is 'stop'.
    """
    numbers = grain.MapDataset.range(len(source)).batch(batch_size)
    batches = _prefetched(numbers.map(_ViewPatches(source, view)), source, workers)
    with contextlib.closing(batches):
        for patches, labels, unreadable in batches:
            read = unreadable < 0
            if not read.all():
                if on_error == 'stop':
                    raise unreadable_image(source, int(unreadable.max()))
                patches, labels = patches[read], labels[read]
            yield Bags(patches, labels, unreadable[~read])


def unreadable_image(source: Source, index: int) -> UnreadableImage:
    """Why an image could not be read, found by reading it again."""
    try:
        source[index]
    except UnreadableImage as error:
        return error
    return UnreadableImage(f'{source.name(index)}: could be read only at the second try')


def first_image(source: Source) -> np.ndarray:
    """The first image that can be read: uint8 [h w c]."""
    return _next_readable(source, 0)[0]['image']


def steps_per_epoch(source: Source, batch_size: int) -> int:
    """Full batches in one pass over the source.

    Raises:
      InputError: the source is smaller than a batch.
    """
    if len(source) < batch_size:
        raise InputError(
            f'data.batch_size={batch_size} is more than the {len(source)} training images'
        )
    return len(source) // batch_size


@dataclasses.dataclass(frozen=True)
class _RandomPatches(grain.transforms.RandomMap):
    """Numbers of the images of a global batch -> this process's TrainBatch."""

    source: Source
    crops: crops.RandomCrops
    shard: tuple[int, int]
    on_device: bool

    def random_map(self, numbers: np.ndarray, rng: np.random.Generator) -> TrainBatch:
        index, count = self.shard
        size = len(numbers) // count
        part = slice(index * size, (index + 1) * size)
        # Drawn for the global batch, so that the crops of an image do not depend on its shard.
        draws = self.crops.draw(rng, len(numbers))[part]
        images, _, unreadable = _read(self.source, numbers[part])
        heights, widths = np.array([image.shape[:2] for image in images]).T
        boxes = self.crops.boxes(draws, heights, widths)
        if self.on_device:
            return TrainBatch({'images': images, 'boxes': boxes}, unreadable)
        patches = crops.cut(images, boxes, resize=self.crops.resize)
        return TrainBatch({'patches': patches}, unreadable)


@dataclasses.dataclass(frozen=True)
class _ViewPatches(grain.transforms.Map):
    """Numbers of images -> Bags that leave none out, with `unreadable` as in TrainBatch."""

    source: Source
    view: View

    def map(self, numbers: np.ndarray) -> Bags:
        images, labels, unreadable = _read(self.source, numbers)
        return Bags(self.view.cut(images), labels, unreadable)


def _read(source: Source, numbers: np.ndarray) -> tuple[crops.Images, np.ndarray, np.ndarray]:
    """Images, labels int64 [b], and unreadable as in TrainBatch."""
    if isinstance(source, ArraySource):
        return source.images[numbers], source.labels[numbers], np.full(len(numbers), -1)
    unreadable = np.full(len(numbers), -1)
    try:
        records = read_records(source, numbers.tolist())
    except UnreadableImage:
        records = []
        for place, number in enumerate(numbers.tolist()):
            record, skipped = _next_readable(source, number)
            records.append(record)
            if skipped:
                unreadable[place] = number
    labels = np.array([record['label'] for record in records])
    return [record['image'] for record in records], labels, unreadable


def _next_readable(source: Source, number: int) -> tuple[dict[str, Any], int]:
    """The first record from `number` on that can be read, and how many could not."""
    first = None
    for skipped in range(min(MANY_UNREADABLE, len(source))):
        try:
            return source[(number + skipped) % len(source)], skipped
        except UnreadableImage as error:
            first = first or error
    raise UnreadableImage(f'{first}; and so it is with the next {skipped} images')


def _prefetched(batches: grain.MapDataset, source: Source, workers: int) -> Iterator[Any]:
    """Iterates over whole batches, some of them made in advance, here or in worker processes."""
    # Slicing arrays holds the interpreter lock; reading and decoding files does not.
    threads = 2 if isinstance(source, ArraySource) else min(os.cpu_count() or 2, 16)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 2)
    if not workers:
        iterator = iter(batches.to_iter_dataset(options))
    else:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain hands absl's flags to its worker processes
        one_ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        dataset = batches.to_iter_dataset(one_ahead)
        iterator = iter(dataset.mp_prefetch(processes, worker_init_fn=_start_worker))
    try:
        if not workers:
            yield from iterator
            return
        with _interrupts_blocked():
            batch = next(iterator)
        while True:
            # Else a batch would lie in shared memory, which has to be given back before the end.
            yield _copied(batch)
            batch = next(iterator)
    except StopIteration:
        return
    finally:
        iterator.close()


def _copied(batch: Any) -> Any:
    """The arrays of dictionaries and named tuples, in memory of this process."""
    if isinstance(batch, dict):
        return {key: _copied(value) for key, value in batch.items()}
    return type(batch)(*map(_copied, batch)) if isinstance(batch, tuple) else np.array(batch)


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes and threads that start inside never see SIGINT: the main one decides what it means.

    A Ctrl-C at a terminal goes to every process of the program. One that comes while this one
    has it blocked is delivered at the end.
    """
    # Its start, which the first semaphore asks for, would unblock the signal.
    multiprocessing.resource_tracker.ensure_running()
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _start_worker(index: int, count: int) -> None:
    """Lets a worker process end with its parent, even if that was killed."""
    del index, count

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
