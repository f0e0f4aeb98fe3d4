"""Data sets by name: their splits, each of them opened once."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import psutil

from bagssl_jax.data import pipeline
from bagssl_jax.data.folder import load_folder
from bagssl_jax.data.photos import load_photos
from bagssl_jax.data.prepared import load_prepared
from bagssl_jax.data.reading import next_readable, read_or_replace
from bagssl_jax.data.sources import ArraySource, CoveringSource, Part, Source
from bagssl_jax.data.views import View
from bagssl_jax.errors import InputError, UnreadableImage
from bagssl_jax.progress import waiting

DECODED_AT_A_TIME = 1000  # images, while all are brought into memory


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set whose splits are opened when they are asked for.

    Attributes:
      name: 'photos'; 'folder', image files under `directory`; or the name of a data set prepared
        in `directory` ('cifar10', 'imagenet_resized/64x64', 'imagenet100').
      directory: of the files or of the prepared data sets, local or remote; unused by 'photos'.
      in_memory: whether every image is decoded once and kept; the images of a split must then be
        of one size.
    """

    name: str
    directory: str
    in_memory: bool
    _opened: dict[str, 'Images'] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def images(self, split: str) -> 'Images':
        """The images of a split; asked for again, the same ones, which are not opened again.

        Args:
          split: in TFDS's notation: 'train', 'train[:10%]', 'train[:500]+test'.

        Raises:
          InputError: an unknown data set or split, or a directory without one.
        """
        if split not in self._opened:
            title = f'{self.name} {split}'
            with waiting(f'opening {title}'):
                self._opened[split] = Images(title, self._open(split), self.in_memory)
        return self._opened[split]

    def _open(self, split: str) -> Source:
        if self.name == 'photos':
            return load_photos(split)
        if self.name == 'folder':
            return load_folder(self.directory, split)
        return load_prepared(self.name, split, self.directory)


def open_dataset(data: Mapping[str, Any]) -> Dataset:
    """The data set that a configuration's `data` names; nothing of it is read yet.

    Raises:
      InputError: it names none, as that of an imported encoder.
    """
    if not data['name']:
        raise InputError(
            'data.name is empty, as that of an imported encoder, which has no images of its own: '
            'give --config.data.name=NAME and --config.data.dir=DIR; or to analyze, --images=FOLDER'
        )
    return Dataset(data['name'], data['dir'], data['in_memory'])


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """The images of one split, opened once.

    Attributes:
      title: the data set's name and the split, 'cifar10 train'.
      stored: the images where they lie.
      in_memory: whether they are decoded once, at their first use, and kept.
    """

    title: str
    stored: Source
    in_memory: bool

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the labels stand for, from 0 up; () where no image has a label."""
        return self.stored.class_names

    @property
    def fingerprint(self) -> str:
        """Changes when the images or labels do, as far as can be told without reading them all."""
        return self.stored.fingerprint

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """(height, width) of every image; None where they may differ.

        Raises:
          InputError: as for `source`, which tells where what is stored does not.
        """
        return self.stored.image_shape or self.source.image_shape

    @functools.cached_property
    def source(self) -> Source:
        """What to read the images from: `stored`, or from the first use on the decoded images.

        Raises:
          InputError: the images do not fit into memory, are of several sizes, or one of them
            cannot be read.
        """
        if not self.in_memory or self.stored.in_memory:
            return self.stored
        with waiting(f'reading all images of {self.title}'):
            return _decoded(self.stored, self.title)

    def name(self, index: int) -> str:
        """What to call an image: its file, or its number."""
        return self.stored.name(index)

    def describe(self) -> dict[str, Any]:
        """What a run writes down of its data, as JSON: how many images, of which classes."""
        return {
            'images': len(self),
            'classes': list(self.class_names),
            'fingerprint': self.fingerprint,
        }

    def first(self) -> np.ndarray:
        """The first image that can be read: uint8 [h w c].

        Raises:
          UnreadableImage: none of the first hundred can.
        """
        return next_readable(self.stored, 0, min_side=0)[0]

    def example_shape(self) -> tuple[int, int]:
        """(height, width) of every image, or where they may differ of the first that can be read.

        Raises:
          InputError: as for `image_shape` and `first`.
        """
        return self.image_shape or self.first().shape[:2]

    def pixels(self, *, min_side: int) -> tuple[np.ndarray, np.ndarray]:
        """All images, which are of one size: uint8 [n h w 3].

        Args:
          min_side: pixels on each side, without which an image counts as unreadable.

        Returns:
          The images, and int64 [any], the numbers of those that could not be read, in whose places
          the next ones that could were taken, as in `pipeline.TrainBatch`.

        Raises:
          InputError: as for `source`, or many images in a row cannot be read.
        """
        shape = len(self), *self.image_shape, 3
        _refuse_beyond_memory(math.prod(shape), self.title, 'data.crop_on=device')
        pixels, unreadable = np.empty(shape, np.uint8), []
        with waiting(f'reading all images of {self.title}'):
            for numbers in _by_parts(len(self)):
                (images, _), faults = read_or_replace(self.source, numbers, min_side=min_side)
                pixels[numbers] = images
                unreadable.append(faults[faults >= 0])
        return pixels, np.concatenate(unreadable)

    def part(self, count: int, *, seed: int) -> 'Images':
        """So many of the images, drawn at random, in their order; all where there are fewer."""
        return dataclasses.replace(self, stored=Part(self.stored, count, seed=seed))

    def enlarged(self, side: int) -> 'Images':
        """These images, where they are of one size and smaller, resized to cover a square."""
        if not self.image_shape or min(self.image_shape) >= side:
            return self
        return dataclasses.replace(self, stored=CoveringSource(self.stored, side))

    def of_one_size(self, side: int) -> 'Images':
        """These images where they are of one size; else resized to cover a square of that side."""
        if self.image_shape:
            return self
        return dataclasses.replace(self, stored=CoveringSource(self.stored, side))

    def bags(
        self,
        view: View,
        *,
        batch_size: int,
        workers: int = 0,
        on_error: str = 'stop',
        numbers: np.ndarray | None = None,
    ) -> Iterator[pipeline.Bags]:
        """Every image's bag once: `pipeline.bag_batches` of these images."""
        return pipeline.bag_batches(
            self.source,
            view,
            batch_size=batch_size,
            workers=workers,
            on_error=on_error,
            numbers=numbers,
        )


def _decoded(source: Source, title: str) -> ArraySource:
    """All images of a source in one array; InputError where they do not fit into one."""
    first = source.read(np.array([0])).images[0]
    _refuse_beyond_memory(len(source) * first.nbytes, title, 'data.in_memory=False')
    images = np.empty((len(source), *first.shape), np.uint8)
    labels = np.empty(len(source), np.int64)
    for numbers in _by_parts(len(source)):
        try:
            records = source.read(numbers)
        except UnreadableImage as error:
            raise InputError(
                f'{error}. With data.in_memory=False, data.on_error=skip leaves such images out'
            ) from None
        for i, image in zip(numbers.tolist(), records.images, strict=True):
            if image.shape != first.shape:
                raise InputError(
                    f'{title} has images of several sizes, {first.shape} and {image.shape}: it '
                    'needs data.in_memory=False, and patches.resize'
                )
            images[i] = image
        labels[numbers] = records.labels
    return ArraySource(images, labels, source.class_names, source.fingerprint, title)


def _by_parts(count: int) -> Iterator[np.ndarray]:
    """The numbers of so many images, `DECODED_AT_A_TIME`."""
    for start in range(0, count, DECODED_AT_A_TIME):
        yield np.arange(start, min(start + DECODED_AT_A_TIME, count))


def _refuse_beyond_memory(needed: int, title: str, instead: str) -> None:
    """Raises InputError where so many bytes are not free on the host."""
    available = psutil.virtual_memory().available
    if needed > available:
        raise InputError(
            f'{title} would take {needed / 2**30:.0f} GiB of the {available / 2**30:.0f} GiB of '
            f'memory that are free: give {instead}'
        )
