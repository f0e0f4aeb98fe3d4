"""Random-access image data sets: `len(source)`, `source[i] -> {'image', 'label'}`, class names."""

import dataclasses
import functools
from typing import Any, Protocol

import numpy as np

from bagssl_jax.data import photos
from bagssl_jax.data.prepared import load_prepared
from bagssl_jax.data.splits import split_ranges
from bagssl_jax.errors import InputError

EMBEDDED = ('photos',)


class Source(Protocol):
    """What the pipeline reads: images of any size, uint8 [h w 3], with int labels."""

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Images that are already decoded and of one size: uint8 [n h w 3], labels int [n]."""

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {'image': self.images[index], 'label': int(self.labels[index])}


def load(name: str, split: str, *, data_dir: str, in_memory: bool) -> Source:
    """Opens one split of a data set.

    Args:
      name: 'photos', or the name of a TFDS data set prepared as ArrayRecord under `data_dir`
        ('cifar10', 'imagenet_resized/64x64', 'imagenet100').
      split: a split in TFDS's notation: 'train', 'train[:10%]', 'train[:500]+test'.
      data_dir: directory of the prepared data sets, local or remote; unused by 'photos'.
      in_memory: decode every image once, now; the images must be of one size.

    Raises:
      InputError: an unknown data set or split, or a directory without a prepared data set.
    """
    if name == 'photos':
        return _load_photos(split)
    if not data_dir:
        raise InputError(
            f'unknown data set {name!r}: {", ".join(EMBEDDED)} is embedded; any other name is '
            'looked for in the directory of prepared TFDS data sets that data.dir gives'
        )
    source = load_prepared(name, split, data_dir)
    return _decoded(source, name) if in_memory else source


def _load_photos(split: str) -> ArraySource:
    names = tuple(photos.PHOTOGRAPHS)
    sizes = {name: count * len(names) for name, count in photos.TILES_PER_CLASS.items()}
    tiles = functools.cache(photos.tiles)
    parts = [
        [array[start:stop] for array in tiles(part)]
        for part, start, stop in split_ranges(split, sizes)
    ]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return ArraySource(images, labels, names)


def _decoded(source: Source, name: str) -> ArraySource:
    first = source[0]['image']
    images = np.empty((len(source), *first.shape), np.uint8)
    labels = np.empty(len(source), np.int64)
    for i in range(len(source)):
        record = source[i]
        if record['image'].shape != first.shape:
            raise InputError(
                f'{name} has images of several sizes, {first.shape} and '
                f'{record["image"].shape}: it needs data.in_memory=False, and patches.resize'
            )
        images[i], labels[i] = record['image'], record['label']
    return ArraySource(images, labels, source.class_names)
