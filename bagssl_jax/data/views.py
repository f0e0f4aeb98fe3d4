"""Views: what of an image is embedded when a trained encoder is looked at."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from bagssl_jax.data.crops import MultiscaleCrops
from bagssl_jax.data.cut import (
    Pixels,
    center_crop,
    center_window,
    covering,
    covering_window,
    cut,
)
from bagssl_jax.data.geometry import PatchGeometry


class Placement(NamedTuple):
    """Where in an image the patches of a view come from, and what becomes of them.

    Attributes:
      boxes: int32 [p 4], (y, x, height, width) in the image.
      resized: (height, width) that every box is resized to.
      window: (y, x, height, width), the part of that which is the patch.
    """

    boxes: np.ndarray
    resized: tuple[int, int]
    window: tuple[int, int, int, int]


class Placed(Protocol):
    """A view whose patches can be told without the pixels: they are linear in these."""

    def placement(self, height: int, width: int, number: int) -> Placement:
        """What `cut` does with an image of that size and number, but for rounding."""


class View(Protocol):
    """What of an image is embedded: a bag of patches, or the image as the only one.

    Attributes:
      min_side: pixels that an image must have on each side, at least.
    """

    @property
    def min_side(self) -> int: ...

    def cut(self, images: Pixels, numbers: np.ndarray) -> np.ndarray:
        """The bags of b images: uint8 [b p h w c].

        Args:
          images: uint8 [b h w c], or a list of [h w c].
          numbers: int [b], which images of their source they are.
        """


@dataclasses.dataclass(frozen=True)
class GridPatches:
    """Square patches at the same places in every image.

    Attributes:
      geometry: how large the patches are.
      places: float [p 2], where they lie, as in `geometry.grid_places`.
    """

    geometry: PatchGeometry
    places: np.ndarray

    @property
    def min_side(self) -> int:
        return self.geometry.size

    def cut(self, images: Pixels, numbers: np.ndarray) -> np.ndarray:
        return _squares(self.geometry, images, (self.places for _ in numbers))

    def placement(self, height: int, width: int, number: int) -> Placement:
        return _placed_squares(self.geometry, self.places, height, width)


@dataclasses.dataclass(frozen=True)
class RandomPatches:
    """Square patches at places that depend on the seed and the number of the image alone.

    Attributes:
      geometry: how large the patches are.
      count: p, patches an image; those of a smaller count are the first of a larger one.
      seed: of the places.
    """

    geometry: PatchGeometry
    count: int
    seed: int

    @property
    def min_side(self) -> int:
        return self.geometry.size

    def cut(self, images: Pixels, numbers: np.ndarray) -> np.ndarray:
        return _squares(self.geometry, images, map(self._places, numbers.tolist()))

    def placement(self, height: int, width: int, number: int) -> Placement:
        return _placed_squares(self.geometry, self._places(number), height, width)

    def _places(self, number: int) -> np.ndarray:
        return np.random.default_rng([self.seed, number]).random((self.count, 2))


@dataclasses.dataclass(frozen=True)
class Whole:
    """The image, resized to cover a size in pixels, as its only patch: uint8 [b 1 height width c].

    Attributes:
      height: of the patch, in pixels.
      width: of the patch, in pixels.
    """

    height: int
    width: int
    min_side: ClassVar[int] = 0

    def cut(self, images: Pixels, numbers: np.ndarray) -> np.ndarray:
        return _one_of_each(images, covering, self.height, self.width)

    def placement(self, height: int, width: int, number: int) -> Placement:
        found = covering_window((height, width), self.height, self.width)
        return _placed_window(*found, self.height, self.width, (height, width))


@dataclasses.dataclass(frozen=True)
class Center:
    """The image's center crop as its only patch: uint8 [b 1 height width c].

    Attributes:
      height: of the patch, in pixels.
      width: of the patch, in pixels.
    """

    height: int
    width: int
    min_side: ClassVar[int] = 0

    def cut(self, images: Pixels, numbers: np.ndarray) -> np.ndarray:
        return _one_of_each(images, center_crop, self.height, self.width)

    def placement(self, height: int, width: int, number: int) -> Placement:
        found = center_window((height, width), self.height, self.width)
        return _placed_window(*found, self.height, self.width, (height, width))


@dataclasses.dataclass(frozen=True)
class FreshCrop:
    """One random resized crop of an image, mirrored half of the time: uint8 [b 1 side side c].

    It depends on the seed, the epoch and the number of the image alone. The area is a share of
    0.08 to 1 of the image's, as in torchvision's RandomResizedCrop and the published protocols.

    Attributes:
      side: of the crop after resizing, in pixels.
      seed: of all epochs' crops.
      epoch: counts the passes over the images, each of which has crops of its own.
    """

    side: int
    seed: int
    epoch: int
    min_side: ClassVar[int] = 0

    def cut(self, images: Pixels, numbers: np.ndarray) -> np.ndarray:
        crops = MultiscaleCrops(1, self.side, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
        rngs = [np.random.default_rng([self.seed, self.epoch, i]) for i in numbers.tolist()]
        draws = np.concatenate([crops.draw(rng, 1) for rng in rngs])
        heights, widths = np.array([image.shape[:2] for image in images]).T
        patches = cut(list(images), crops.boxes(draws, heights, widths), resize=self.side)
        mirrored = np.array([rng.random() < 0.5 for rng in rngs])
        patches[mirrored] = patches[mirrored][..., ::-1, :]
        return patches


def _squares(
    geometry: PatchGeometry, images: Pixels, places_of_each: Iterable[np.ndarray]
) -> np.ndarray:
    boxes = [
        geometry.boxes_at(places, *image.shape[:2])
        for image, places in zip(images, places_of_each, strict=True)
    ]
    return cut(images, np.stack(boxes), resize=geometry.resize)


def _one_of_each(
    images: Pixels, crop: Callable[[np.ndarray, int, int], np.ndarray], height: int, width: int
) -> np.ndarray:
    return np.stack([crop(image, height, width) for image in images])[:, None]  # [b 1 h w c]


def _placed_squares(
    geometry: PatchGeometry, places: np.ndarray, height: int, width: int
) -> Placement:
    boxes = geometry.boxes_at(places, height, width)
    side = geometry.resize or int(boxes[0, 2])
    return Placement(boxes, (side, side), (0, 0, side, side))


def _placed_window(
    resized: tuple[int, int],
    corner: tuple[int, int],
    height: int,
    width: int,
    shape: tuple[int, int],
) -> Placement:
    boxes = np.array([[0, 0, *shape]], np.int32)
    return Placement(boxes, resized, (*corner, height, width))
