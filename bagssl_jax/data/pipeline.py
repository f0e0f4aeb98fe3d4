"""The grain pipelines: endless batches of random patches, and bags in the source's order."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import grain
import numpy as np
from absl import flags
from grain.transforms import RandomMap

from bagssl_jax.data import crops
from bagssl_jax.data.sources import Source
from bagssl_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class RandomPatches(RandomMap):
    """Cuts `count` patches at uniformly random places: record -> uint8 [p s s c].

    `size`, `scale` and `resize` are those of the configuration's `patches`.
    """

    count: int
    size: int
    scale: float
    resize: int

    def random_map(self, element: dict, rng: np.random.Generator) -> np.ndarray:
        image = element['image']
        height, width = image.shape[:2]
        side = crops.patch_side(height, width, size=self.size, scale=self.scale)
        boxes = crops.random_boxes(rng, height, width, side=side, count=self.count)
        return crops.cut(image, boxes, resize=self.resize)


@dataclasses.dataclass(frozen=True)
class RandomResizedPatches(RandomMap):
    """Cuts `count` crops of random area and aspect, resized: record -> uint8 [p s s c].

    `scale` and `ratio` are those of `crops.random_resized_boxes`.
    """

    count: int
    resize: int
    scale: tuple[float, float]
    ratio: tuple[float, float]

    def random_map(self, element: dict, rng: np.random.Generator) -> np.ndarray:
        image = element['image']
        boxes = crops.random_resized_boxes(
            rng, *image.shape[:2], scale=self.scale, ratio=self.ratio, count=self.count
        )
        return crops.cut(image, boxes, resize=self.resize)


def make_crops(name: str, patches: Mapping[str, Any], multiscale: Mapping[str, Any]) -> RandomMap:
    """What cuts the training patches: record -> uint8 [p s s c].

    Args:
      name: 'fixed', squares of one scale, or 'multiscale', RandomResizedCrop.
      patches: count, size, scale and resize, as in the configuration.
      multiscale: scale and ratio, likewise.

    Raises:
      InputError: an unknown name, or 'multiscale' with unusable ranges or no size to resize to.
    """
    if name == 'fixed':
        return RandomPatches(**patches)
    if name != 'multiscale':
        raise InputError(f'unknown crops {name!r}: choose from fixed, multiscale')
    if patches['resize'] < 1:
        raise InputError('crops=multiscale has crops of many sizes: give patches.resize=SIDE')
    scale, ratio = multiscale['scale'], multiscale['ratio']
    if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
        raise InputError(
            f'multiscale.scale={scale} and multiscale.ratio={ratio} must be (smallest, largest), '
            'the former in (0, 1]'
        )
    return RandomResizedPatches(patches['count'], patches['resize'], scale, ratio)


def check_patches(patches: Mapping[str, Any], *, in_memory: bool) -> None:
    """Raises InputError where patches of different images may come out in different sizes."""
    if patches['resize'] < 0:
        raise InputError(f'patches.resize={patches["resize"]} must be a size in pixels, or 0')
    if not in_memory and not patches['size'] and not patches['resize']:
        raise InputError(
            'with data.in_memory=False images may differ in size, and patches.scale in pixels '
            'with them: give patches.resize=SIDE or patches.size=SIDE'
        )


def train_batches(
    source: Source,
    transform: RandomMap,
    *,
    seed: int,
    batch_size: int,
    start: int = 0,
    workers: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[np.ndarray]:
    """Endless shuffled batches of random patches, from batch number `start` on.

    Batch i depends on (seed, i) alone. An epoch shows every image once, less the last images
    that fill no batch; every epoch has an order and crops of its own.

    Args:
      source: images.
      transform: cuts the patches of one record.
      seed: of the order and the crops.
      batch_size: images in the global batch.
      start: number of the first batch, counted from the beginning of training.
      workers: processes that crop; 0 crops in threads of this one.
      shard: (index, count) of the part of each batch that this process wants.

    Yields:
      uint8 [b/count p h w c]; the parts of a batch, in order, are the global batch.
    """
    if workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain hands absl's flags to its worker processes
    patches = grain.MapDataset.source(source).seed(seed).shuffle().random_map(transform)
    # Sharding follows the random map, so that the crops of an image do not depend on its shard.
    part = _ShardOfEachBatch(patches, batch_size, shard)
    batches = part.batch(batch_size // shard[1], drop_remainder=True).repeat()
    batches = batches.slice(slice(start, None))
    # Few threads: more of them contend for the interpreter lock and slow down.
    dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    if workers:
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        dataset = dataset.mp_prefetch(options)
    return iter(dataset)


@dataclasses.dataclass(frozen=True)
class GridPatches(grain.transforms.Map):
    """Cuts an even grid of `count` patches: record -> (uint8 [p s s c], label)."""

    count: int
    size: int
    scale: float
    resize: int

    def map(self, element: dict) -> tuple[np.ndarray, int]:
        image = element['image']
        height, width = image.shape[:2]
        side = crops.patch_side(height, width, size=self.size, scale=self.scale)
        boxes = crops.grid_boxes(height, width, side=side, count=self.count)
        return crops.cut(image, boxes, resize=self.resize), element['label']


@dataclasses.dataclass(frozen=True)
class Whole(grain.transforms.Map):
    """Takes the full image as its only patch: record -> (uint8 [1 height width c], label).

    An image of another size is resized to cover that one, and its center cropped.
    """

    height: int
    width: int

    def map(self, element: dict) -> tuple[np.ndarray, int]:
        image = crops.covering(element['image'], self.height, self.width)
        return image[None], element['label']


def bag_batches(
    source: Source, transform: grain.transforms.Map, *, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every image's bag once, in the source's order; the last batch may be smaller.

    Yields:
      uint8 [b p h w c] and labels int [b].
    """
    bags = grain.MapDataset.source(source).map(transform).batch(batch_size)
    return iter(bags.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))


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


class _ShardOfEachBatch(grain.MapDataset):
    """Keeps, of every `batch_size` consecutive elements, the consecutive part of one process."""

    def __init__(self, parent: grain.MapDataset, batch_size: int, shard: tuple[int, int]):
        super().__init__(parent)
        self._batch_size = batch_size
        self._index, self._count = shard

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * (self._batch_size // self._count)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        # Beyond the length lie later epochs, which reseed the shuffle and the crops.
        epoch, index = divmod(index, len(self))
        size = self._batch_size // self._count
        batch, place = divmod(index, size)
        position = batch * self._batch_size + self._index * size + place
        return self._parent[epoch * len(self._parent) + position]
