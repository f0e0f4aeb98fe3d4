"""The grain pipelines: endless batches of random patches, and bags in the source's order.

grain is handed the numbers of images and shuffles, batches, seeds and prefetches those; an image
is read when its batch is made, in the thread or the worker process that makes it.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import NamedTuple

import grain
import numpy as np

from bagssl_jax.data.crops import RandomCrops, cut_boxes
from bagssl_jax.data.prefetch import ahead, prefetched
from bagssl_jax.data.reading import read_or_replace, unreadable_image
from bagssl_jax.data.sources import Source
from bagssl_jax.data.views import View
from bagssl_jax.errors import InputError, check_known

# Where training patches are cut: here; by what takes the batches; by that, which has all images.
CROP_ON = ('host', 'device', 'resident')
ON_ERROR = ('stop', 'skip')  # at an unreadable image: raise its error, or leave it out
# Of a pass, without which a worker process takes longer to start than it would work.
IMAGES_PER_WORKER = 500


class TrainBatch(NamedTuple):
    """One process's part of a global batch, of b images.

    Attributes:
      inputs: {'patches': uint8 [b p s s c], or a tuple of them, one a size, of crops that have
        several}; where the device is to cut them, {'images': uint8 [b h w c], 'boxes': int32
        [b p 4]}; where it has all images, {'numbers': int32 [b], 'boxes'}.
      unreadable: int64 [b], the numbers of images that could not be read, in whose places the next
        ones that could were taken; -1 for all others.
    """

    inputs: dict[str, np.ndarray | tuple[np.ndarray, ...]]
    unreadable: np.ndarray


def train_batches(
    source: Source,
    random_crops: RandomCrops,
    *,
    seed: int,
    batch_size: int,
    start: int = 0,
    workers: int = 0,
    shard: tuple[int, int] = (0, 1),
    crop_on: str = 'host',
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
      crop_on: one of `CROP_ON`; all but 'host' need images of one size, and 'resident' reads none.
    """
    batches = batch_dataset(
        source, random_crops, seed=seed, batch_size=batch_size, shard=shard, crop_on=crop_on
    )
    return prefetched(batches.slice(slice(start, None)), _threads(source), workers)


def batch_dataset(
    source: Source,
    random_crops: RandomCrops,
    *,
    seed: int,
    batch_size: int,
    shard: tuple[int, int] = (0, 1),
    crop_on: str = 'host',
) -> grain.MapDataset:
    """Batch i of `train_batches`, made when element i is asked for."""
    numbers = grain.MapDataset.source(_ShuffledNumbers(len(source), batch_size, seed))
    return numbers.seed(seed).random_map(_RandomPatches(source, random_crops, shard, crop_on))


class Bags(NamedTuple):
    """The bags of b images.

    Attributes:
      patches: uint8 [b p h w c].
      labels: int64 [b]; -1 where an image has none.
      unreadable: int64 [any], the numbers of images that could not be read, and that have no bag.
    """

    patches: np.ndarray
    labels: np.ndarray
    unreadable: np.ndarray


def bag_batches(
    source: Source,
    view: View,
    *,
    batch_size: int,
    workers: int = 0,
    on_error: str = 'stop',
    numbers: np.ndarray | None = None,
) -> Iterator[Bags]:
    """Every image's bag once, in the source's order; the last batch may be smaller.

    Args:
      source: images.
      view: what of an image is embedded.
      batch_size: images.
      workers: as in `train_batches`, at most: few images have fewer.
      on_error: one of `ON_ERROR`. 'stop' raises the error of an unreadable image, 'skip' leaves
        such images out and gives their numbers.
      numbers: int [n], the images to take, in this order; None for all of the source.

    Raises:
      InputError: an unknown `on_error`.
      UnreadableImage: there is one, and `on_error` is 'stop'.
    """
    check_known('on_error', on_error, ON_ERROR)
    numbers = np.arange(len(source)) if numbers is None else numbers
    workers = min(workers, len(numbers) // IMAGES_PER_WORKER)
    batched = grain.MapDataset.source(numbers).batch(batch_size)
    batches = prefetched(batched.map(_ViewPatches(source, view)), _threads(source), workers)
    with contextlib.closing(batches):
        for patches, labels, unreadable in batches:
            read = unreadable < 0
            if not read.all():
                if on_error == 'stop':
                    raise unreadable_image(source, int(unreadable.max()), min_side=view.min_side)
                patches, labels = patches[read], labels[read]
            yield Bags(patches, labels, unreadable[~read])


def batches_ahead(source: Source, workers: int) -> int:
    """How many batches of `source` are made before they are asked for, at most."""
    return ahead(_threads(source), workers)


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Full batches in one pass over so many images.

    Raises:
      InputError: they are fewer than a batch.
    """
    if images < batch_size:
        raise InputError(
            f'data.batch_size={batch_size} is more than the {images} training images: '
            f'--config.data.batch_size={images} or fewer'
        )
    return images // batch_size


class _ShuffledNumbers:
    """Element i is the numbers of the images of batch i: int64 [b].

    One permutation an epoch: grain's shuffle has no state, but takes 4 us an image, a third of
    what cutting its patches does, and 360 us where a data set is as small as a hundred images.
    """

    def __init__(self, images: int, batch_size: int, seed: int):
        self._images = images
        self._batch_size = batch_size
        self._seed = seed
        self._orders = {}  # of the epochs in use

    def __len__(self) -> int:
        return 2**31 - 1  # more than any training takes

    def __getitem__(self, index: int) -> np.ndarray:
        epoch, place = divmod(index, self._images // self._batch_size)
        order = self._orders.get(epoch)
        if order is None:
            order = np.random.default_rng([self._seed, epoch]).permutation(self._images)
            # At the turn of an epoch, batches of both are made.
            self._orders = {
                epoch: order,
                **{e: o for e, o in self._orders.items() if e == epoch - 1},
            }
        return order[place * self._batch_size : (place + 1) * self._batch_size]


@dataclasses.dataclass(frozen=True)
class _RandomPatches(grain.transforms.RandomMap):
    """Numbers of the images of a global batch -> this process's TrainBatch."""

    source: Source
    crops: RandomCrops
    shard: tuple[int, int]
    crop_on: str

    def random_map(self, numbers: np.ndarray, rng: np.random.Generator) -> TrainBatch:
        index, count = self.shard
        size = len(numbers) // count
        part = slice(index * size, (index + 1) * size)
        # Drawn for the global batch, so that the crops of an image do not depend on its shard.
        draws, numbers = self.crops.draw(rng, len(numbers))[part], numbers[part]
        if self.crop_on == 'resident':
            heights, widths = np.broadcast_to(self.source.image_shape, (size, 2)).T
            boxes = self.crops.boxes(draws, heights, widths)
            inputs = {'numbers': numbers.astype(np.int32), 'boxes': boxes}
            return TrainBatch(inputs, np.full(size, -1))
        (images, _), unreadable = read_or_replace(
            self.source, numbers, min_side=self.crops.min_side
        )
        heights, widths = np.array([image.shape[:2] for image in images]).T
        boxes = self.crops.boxes(draws, heights, widths)
        if self.crop_on == 'device':
            return TrainBatch({'images': np.asarray(images), 'boxes': boxes}, unreadable)
        return TrainBatch({'patches': cut_boxes(images, self.crops, boxes)}, unreadable)


@dataclasses.dataclass(frozen=True)
class _ViewPatches(grain.transforms.Map):
    """Numbers of images -> Bags that leave none out, with `unreadable` as in TrainBatch."""

    source: Source
    view: View

    def map(self, numbers: np.ndarray) -> Bags:
        (images, labels), unreadable = read_or_replace(
            self.source, numbers, min_side=self.view.min_side
        )
        return Bags(self.view.cut(images, numbers), labels, unreadable)


def _threads(source: Source) -> int:
    # Slicing arrays holds the interpreter lock; reading and decoding files does not.
    return 2 if source.in_memory else min(os.cpu_count() or 2, 16)
