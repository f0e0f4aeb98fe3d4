"""The grain pipelines: endless batches of random patches, and bags in the source's order.

grain is handed the numbers of images and shuffles, batches, seeds and prefetches those; an image
is read when its batch is made, in the thread or the worker process that makes it.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np

from bagssl_jax.data import crops
from bagssl_jax.data.prefetch import prefetched
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
    return prefetched(batches.slice(slice(start, None)), _threads(source), workers)


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
    numbers = grain.MapDataset.source(_ShuffledNumbers(len(source), batch_size, seed))
    return numbers.seed(seed).random_map(_RandomPatches(source, random_crops, shard, on_device))


class View(Protocol):
    """What of an image is embedded."""

    size: int  # pixels that an image must have on each side, at least

    def cut(self, images: crops.Images, numbers: np.ndarray) -> np.ndarray:
        """uint8 [h w c] of each image, and its number in the source -> uint8 [b p h w c]."""


@dataclasses.dataclass(frozen=True)
class Patches:
    """Square patches; `size`, `scale` and `resize` as in the configuration's `patches`.

    Attributes:
      places: [p 2] as of `crops.grid_places`, the same in every image; or None, for
      count: places at random, which depend on
      seed: and on the number of the image alone.
    """

    size: int
    scale: float
    resize: int
    places: np.ndarray | None
    count: int = 0
    seed: int = 0

    def cut(self, images: crops.Images, numbers: np.ndarray) -> np.ndarray:
        boxes = []
        for image, number in zip(images, numbers.tolist(), strict=True):
            height, width = image.shape[:2]
            side = crops.patch_side(height, width, size=self.size, scale=self.scale)
            places = self.places
            if places is None:
                places = np.random.default_rng([self.seed, number]).random((self.count, 2))
            boxes.append(crops.boxes_at(places, height, width, side=side))
        return crops.cut(images, np.stack(boxes), resize=self.resize)


@dataclasses.dataclass(frozen=True)
class Whole:
    """The image, resized to cover a size, as its only patch: uint8 [b 1 height width c]."""

    height: int
    width: int
    size: int = 0

    def cut(self, images: crops.Images, numbers: np.ndarray) -> np.ndarray:
        del numbers
        return np.stack([crops.covering(image, self.height, self.width)[None] for image in images])


@dataclasses.dataclass(frozen=True)
class Center:
    """The image's center crop as its only patch: uint8 [b 1 height width c]."""

    height: int
    width: int
    size: int = 0

    def cut(self, images: crops.Images, numbers: np.ndarray) -> np.ndarray:
        del numbers
        return np.stack(
            [crops.center_crop(image, self.height, self.width)[None] for image in images]
        )


class Bags(NamedTuple):
    """The bags of b images, and the numbers of those that could not be read and are left out."""

    patches: np.ndarray  # uint8 [b p h w c]
    labels: np.ndarray  # int64 [b]
    unreadable: np.ndarray  # int64


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
      workers: as in `train_batches`.
      on_error: 'stop' at an unreadable image, or 'skip' it.
      numbers: int [n], of the images to take instead, in this order.

    Raises:
      UnreadableImage: there is one, and `on_error` is 'stop'.
    """
    numbers = np.arange(len(source)) if numbers is None else numbers
    batched = grain.MapDataset.source(numbers).batch(batch_size)
    batches = prefetched(batched.map(_ViewPatches(source, view)), _threads(source), workers)
    with contextlib.closing(batches):
        for patches, labels, unreadable in batches:
            read = unreadable < 0
            if not read.all():
                if on_error == 'stop':
                    raise unreadable_image(source, int(unreadable.max()), view.size)
                patches, labels = patches[read], labels[read]
            yield Bags(patches, labels, unreadable[~read])


def unreadable_image(source: Source, index: int, size: int) -> UnreadableImage:
    """Why an image could not be read, or is smaller than `size`; found by reading it again."""
    try:
        _checked(source, index, source[index], size)
    except UnreadableImage as error:
        return error
    return UnreadableImage(f'{source.name(index)}: could be read only at the second try')


def first_image(source: Source) -> np.ndarray:
    """The first image that can be read: uint8 [h w c]."""
    return _next_readable(source, 0, 0)[0]['image']


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
    crops: crops.RandomCrops
    shard: tuple[int, int]
    on_device: bool

    def random_map(self, numbers: np.ndarray, rng: np.random.Generator) -> TrainBatch:
        index, count = self.shard
        size = len(numbers) // count
        part = slice(index * size, (index + 1) * size)
        # Drawn for the global batch, so that the crops of an image do not depend on its shard.
        draws = self.crops.draw(rng, len(numbers))[part]
        images, _, unreadable = _read(self.source, numbers[part], self.crops.size)
        heights, widths = np.array([image.shape[:2] for image in images]).T
        boxes = self.crops.boxes(draws, heights, widths)
        if self.on_device:
            return TrainBatch({'images': np.asarray(images), 'boxes': boxes}, unreadable)
        patches = crops.cut(images, boxes, resize=self.crops.resize)
        return TrainBatch({'patches': patches}, unreadable)


@dataclasses.dataclass(frozen=True)
class _ViewPatches(grain.transforms.Map):
    """Numbers of images -> Bags that leave none out, with `unreadable` as in TrainBatch."""

    source: Source
    view: View

    def map(self, numbers: np.ndarray) -> Bags:
        images, labels, unreadable = _read(self.source, numbers, self.view.size)
        return Bags(self.view.cut(images, numbers), labels, unreadable)


def _read(
    source: Source, numbers: np.ndarray, size: int
) -> tuple[crops.Images, np.ndarray, np.ndarray]:
    """Images, labels int64 [b], and unreadable as in TrainBatch: also those smaller than `size`."""
    if isinstance(source, ArraySource):
        return source.images[numbers], source.labels[numbers], np.full(len(numbers), -1)
    unreadable = np.full(len(numbers), -1)
    try:
        records = read_records(source, numbers.tolist())
        for number, record in zip(numbers.tolist(), records, strict=True):
            _checked(source, number, record, size)
    except UnreadableImage:
        records = []
        for place, number in enumerate(numbers.tolist()):
            record, skipped = _next_readable(source, number, size)
            records.append(record)
            if skipped:
                unreadable[place] = number
    labels = np.array([record['label'] for record in records])
    return [record['image'] for record in records], labels, unreadable


def _next_readable(source: Source, number: int, size: int) -> tuple[dict[str, Any], int]:
    """The first record from `number` on that can be read, and how many could not."""
    first = None
    for skipped in range(min(MANY_UNREADABLE, len(source))):
        try:
            index = (number + skipped) % len(source)
            return _checked(source, index, source[index], size), skipped
        except UnreadableImage as error:
            first = first or error
    raise UnreadableImage(f'{first}; and so it is with the next {skipped} images')


def _checked(source: Source, index: int, record: dict[str, Any], size: int) -> dict[str, Any]:
    """The record, if its image has `size` pixels on each side; else UnreadableImage."""
    height, width = record['image'].shape[:2]
    if min(height, width) < size:
        raise UnreadableImage(
            f'{source.name(index)}: is {height}x{width} pixels, smaller than patches of '
            f'{size}x{size}'
        )
    return record


def _threads(source: Source) -> int:
    # Slicing arrays holds the interpreter lock; reading and decoding files does not.
    return 2 if isinstance(source, ArraySource) else min(os.cpu_count() or 2, 16)
