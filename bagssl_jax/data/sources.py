"""Random-access image data sets: what the pipelines read images from."""

import dataclasses
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from bagssl_jax.data.cut import Pixels, covering


class Records(NamedTuple):
    """What is read of b images.

    Attributes:
      images: uint8 [b h w 3], upright RGB, where all lie in one array; else a list of [h w 3].
      labels: int64 [b]; -1 where an image has none.
    """

    images: Pixels
    labels: np.ndarray


class Source(Protocol):
    """Images, numbered from 0.

    Attributes:
      in_memory: whether the images are decoded already, so that reading is no more than copying.
      class_names: what the labels stand for, from 0 up; () where no image has a label.
      image_shape: (height, width) of every image; None where they may differ.
      fingerprint: changes when the images or labels do, as far as can be told without reading
        every image.
    """

    in_memory: bool
    class_names: tuple[str, ...]
    image_shape: tuple[int, int] | None
    fingerprint: str

    def __len__(self) -> int: ...

    def read(self, numbers: np.ndarray) -> Records:
        """The images of these numbers, int [b], in their order; may raise UnreadableImage."""

    def name(self, index: int) -> str:
        """What to call an image: its file, or its number."""


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Images that are already decoded and of one size.

    Attributes:
      images: uint8 [n h w 3].
      labels: int64 [n]; -1 where an image has none.
      class_names: as of any source.
      fingerprint: as of any source.
      title: what the images are called, before their numbers.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    fingerprint: str = ''
    title: str = 'image'
    in_memory: ClassVar[bool] = True

    @property
    def image_shape(self) -> tuple[int, int]:
        return self.images.shape[1:3]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, numbers: np.ndarray) -> Records:
        return Records(self.images[numbers], self.labels[numbers])

    def name(self, index: int) -> str:
        return f'{self.title} #{index}'


@dataclasses.dataclass(frozen=True)
class CoveringSource:
    """Images of another source, resized to just cover a square, whose center they become.

    Attributes:
      stored: the other source.
      side: of the square in pixels.
    """

    stored: Source
    side: int
    in_memory: ClassVar[bool] = False

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.stored.class_names

    @property
    def image_shape(self) -> tuple[int, int]:
        return self.side, self.side

    @property
    def fingerprint(self) -> str:
        return f'{self.stored.fingerprint} covering {self.side}'

    def __len__(self) -> int:
        return len(self.stored)

    def read(self, numbers: np.ndarray) -> Records:
        images, labels = self.stored.read(numbers)
        return Records(np.stack([covering(x, self.side, self.side) for x in images]), labels)

    def name(self, index: int) -> str:
        return self.stored.name(index)


class Part:
    """Images of another source, drawn at random, in its order.

    Evenly spaced ones could miss whole classes.
    """

    def __init__(self, source: Source, count: int, *, seed: int):
        """Draws `count` images, or takes all where there are fewer."""
        chosen = np.random.default_rng(seed).permutation(len(source))[:count]
        self._source = source
        self._numbers = np.sort(chosen)
        self.in_memory = source.in_memory
        self.class_names = source.class_names
        self.image_shape = source.image_shape
        self.fingerprint = f'{source.fingerprint} {count} {seed}'

    def __len__(self) -> int:
        return len(self._numbers)

    def read(self, numbers: np.ndarray) -> Records:
        return self._source.read(self._numbers[numbers])

    def name(self, index: int) -> str:
        return self._source.name(int(self._numbers[index]))
