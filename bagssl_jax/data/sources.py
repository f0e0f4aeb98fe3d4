"""Random-access image data sets: `len(source)`, `source[i] -> {'image', 'label'}`, class names."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import psutil

from bagssl_jax.data import photos
from bagssl_jax.data.folder import load_folder
from bagssl_jax.data.prepared import load_prepared
from bagssl_jax.data.splits import split_ranges
from bagssl_jax.errors import InputError, UnreadableImage


class Source(Protocol):
    """What the pipeline reads: images uint8 [h w 3], upright RGB, with int labels.

    Attributes:
      class_names: () where no image has a label.
      image_shape: (height, width) of every image; None where they may differ.
      fingerprint: changes when the images or labels do, as far as can be told without reading
        every image.
    """

    class_names: tuple[str, ...]
    image_shape: tuple[int, int] | None
    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{'image', 'label'}, the label -1 where there is none; may raise UnreadableImage."""

    def name(self, index: int) -> str:
        """What to call an image: its file, or its number."""


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Images that are already decoded and of one size: uint8 [n h w 3], labels int [n]."""

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    fingerprint: str = ''
    title: str = 'image'

    @property
    def image_shape(self) -> tuple[int, int]:
        return self.images.shape[1:3]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {'image': self.images[index], 'label': int(self.labels[index])}

    def name(self, index: int) -> str:
        return f'{self.title} #{index}'


class Part:
    """Images of another source, drawn at random, in its order.

    Evenly spaced ones could miss whole classes.
    """

    def __init__(self, source: Source, count: int, *, seed: int):
        """Draws `count` images, or takes all where there are fewer."""
        chosen = np.random.default_rng(seed).permutation(len(source))[:count]
        self._source = source
        self._indices = np.sort(chosen)
        self.class_names = source.class_names
        self.image_shape = source.image_shape
        self.fingerprint = f'{source.fingerprint} {count} {seed}'

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[int(self._indices[index])]

    def name(self, index: int) -> str:
        return self._source.name(int(self._indices[index]))


def load(name: str, split: str, *, data_dir: str, in_memory: bool) -> Source:
    """Opens one split of a data set.

    Args:
      name: 'photos'; 'folder', image files under `data_dir`; or the name of a data set prepared
        in `data_dir` ('cifar10', 'imagenet_resized/64x64', 'imagenet100').
      split: a split in TFDS's notation: 'train', 'train[:10%]', 'train[:500]+test'.
      data_dir: directory of the files or of the prepared data sets, local or remote; unused by
        'photos'.
      in_memory: decode every image once, now; the images must be of one size.

    Raises:
      InputError: an unknown data set or split, a directory without one, or images that do not
        fit into memory.
    """
    if name == 'photos':
        return _load_photos(split)
    source = (
        load_folder(data_dir, split) if name == 'folder' else load_prepared(name, split, data_dir)
    )
    return _decoded(source, f'{name} {split}') if in_memory else source


def describe(source: Source) -> dict[str, Any]:
    """What a run writes down of its data, as JSON: how many images, of which classes."""
    return {
        'images': len(source),
        'classes': list(source.class_names),
        'fingerprint': source.fingerprint,
    }


def read_records(source: Source, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Several records, at once where the source has a way of its own; may raise UnreadableImage."""
    if hasattr(source, '__getitems__'):
        return source.__getitems__(indices)
    return [source[i] for i in indices]


def _load_photos(split: str) -> ArraySource:
    names = tuple(photos.PHOTOGRAPHS)
    sizes = {name: count * len(names) for name, count in photos.TILES_PER_CLASS.items()}
    tiles = functools.cache(photos.tiles)
    parts = [
        [array[start:stop] for array in tiles(part)]
        for part, start, stop in split_ranges(split, sizes)
    ]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return ArraySource(images, labels, names, hashlib.sha256(images).hexdigest(), f'photos {split}')


def _decoded(source: Source, title: str) -> ArraySource:
    [first] = [record['image'] for record in read_records(source, [0])]
    needed, available = len(source) * first.nbytes, psutil.virtual_memory().available
    if needed > available:
        raise InputError(
            f'{title} would take {needed / 2**30:.0f} GiB of the {available / 2**30:.0f} GiB of '
            'memory that are free: give data.in_memory=False'
        )
    images = np.empty((len(source), *first.shape), np.uint8)
    labels = np.empty(len(source), np.int64)
    for start in range(0, len(source), 1000):
        chunk = range(start, min(start + 1000, len(source)))
        try:
            records = read_records(source, chunk)
        except UnreadableImage as error:
            raise InputError(
                f'{error}. With data.in_memory=False, data.on_error=skip leaves such images out'
            ) from None
        for i, record in zip(chunk, records, strict=True):
            if record['image'].shape != first.shape:
                raise InputError(
                    f'{title} has images of several sizes, {first.shape} and '
                    f'{record["image"].shape}: it needs data.in_memory=False, and patches.resize'
                )
            images[i], labels[i] = record['image'], record['label']
    return ArraySource(images, labels, source.class_names, source.fingerprint, title)
