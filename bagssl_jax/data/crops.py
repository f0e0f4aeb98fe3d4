"""Where the random patches of training lie: squares of one scale, or boxes of many or of two.

A box is (y, x, height, width) in pixels.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from bagssl_jax.data.cut import INTERPOLATIONS, Pixels, cut
from bagssl_jax.data.geometry import PatchGeometry
from bagssl_jax.errors import InputError, check_known

Patches = TypeVar('Patches')


class RandomCrops(Protocol):
    """How the training patches of an image are placed.

    The draws do not depend on the images, so that one process can draw for a global batch and
    take its part without knowing the other images' sizes.

    Attributes:
      count: p, patches an image.
      min_side: pixels that an image must have on each side, at least.
      sizes: of each size that patches come in, in the order of the bag: how many they are, and the
        side in pixels that they are resized to after they are cut; 0 keeps their pixels.
      interpolation: of that, as `cut.cut` takes it.
    """

    count: int

    @property
    def min_side(self) -> int: ...

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]: ...

    @property
    def interpolation(self) -> str: ...

    def draw(self, rng: np.random.Generator, images: int) -> np.ndarray:
        """Numbers in [0, 1) for so many images: float64 [b p k], k of them a patch."""

    def boxes(self, draws: np.ndarray, heights: ArrayLike, widths: ArrayLike) -> np.ndarray:
        """The boxes in images of these sizes, int [b] each: int32 [b p 4]."""


@dataclasses.dataclass(frozen=True)
class FixedCrops:
    """Squares of one geometry, uniform over all places.

    Attributes:
      count: p, patches an image.
      geometry: how large the patches are.
    """

    count: int
    geometry: PatchGeometry
    interpolation: ClassVar[str] = 'area'

    @property
    def min_side(self) -> int:
        return self.geometry.size

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        return ((self.count, self.geometry.resize),)

    def draw(self, rng: np.random.Generator, images: int) -> np.ndarray:
        return rng.random((images, self.count, 2))

    def boxes(self, draws: np.ndarray, heights: ArrayLike, widths: ArrayLike) -> np.ndarray:
        heights, widths = np.asarray(heights), np.asarray(widths)
        sides = self.geometry.sides(heights, widths)
        boxes = np.empty((*draws.shape[:2], 4), np.int32)
        boxes[..., 0] = draws[..., 0] * (heights - sides + 1)[:, None]  # rounds down
        boxes[..., 1] = draws[..., 1] * (widths - sides + 1)[:, None]
        boxes[..., 2:] = sides[:, None, None]
        return boxes


@dataclasses.dataclass(frozen=True)
class MultiscaleCrops:
    """Boxes of random area, aspect and place, as in torchvision's RandomResizedCrop.

    The share of the area is uniform in `scale`, the logarithm of width / height uniform in that
    of `ratio`; sides are rounded. Of ten tries the first that fits is taken, at a uniform place;
    where none fits, the largest center crop with an aspect inside `ratio`.

    Attributes:
      count: p, patches an image.
      resize: side in pixels that every patch is resized to.
      scale: smallest and largest share of the image's area, in (0, 1].
      ratio: smallest and largest width / height.
      interpolation: as `cut.cut` takes it.
    """

    count: int
    resize: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    interpolation: str = 'area'
    min_side: ClassVar[int] = 0

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        return ((self.count, self.resize),)

    def draw(self, rng: np.random.Generator, images: int) -> np.ndarray:
        return rng.random((images, self.count, 22))  # area and aspect of ten tries, y and x

    def boxes(self, draws: np.ndarray, heights: ArrayLike, widths: ArrayLike) -> np.ndarray:
        height, width = np.asarray(heights)[:, None], np.asarray(widths)[:, None]  # [b 1]
        draws = np.moveaxis(draws, -1, 0)  # [22 b p]
        area = height * width * _between(self.scale, draws[:10])
        aspect = np.exp(_between(np.log(self.ratio), draws[10:20]))
        h, w = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))  # [10 b p]
        fits = (h > 0) & (h <= height) & (w > 0) & (w <= width)
        found, first = fits.any(axis=0), fits.argmax(axis=0)[None]
        h, w = (np.take_along_axis(x, first, axis=0)[0] for x in (h, w))  # [b p]

        aspect = np.clip(width / height, *self.ratio)
        h = np.where(found, h, np.clip(np.rint(width / aspect), 1, height))
        w = np.where(found, w, np.clip(np.rint(height * aspect), 1, width))
        y = np.where(found, draws[20] * (height - h + 1), (height - h) // 2)
        x = np.where(found, draws[21] * (width - w + 1), (width - w) // 2)
        return np.stack([y, x, h, w], axis=-1).astype(np.int32)  # rounds down


@dataclasses.dataclass(frozen=True)
class MultiCrops:
    """Multi-crop of SwAV (Caron et al., arXiv 2006.09882): some large crops, more small ones.

    Attributes:
      large: the global crops, which come first in the bag.
      small: the local ones, of the same interpolation.
    """

    large: MultiscaleCrops
    small: MultiscaleCrops
    min_side: ClassVar[int] = 0

    @property
    def count(self) -> int:
        return self.large.count + self.small.count

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        return self.large.sizes + self.small.sizes

    @property
    def interpolation(self) -> str:
        return self.large.interpolation

    def draw(self, rng: np.random.Generator, images: int) -> np.ndarray:
        drawn = [crops.draw(rng, images) for crops in (self.large, self.small)]
        return np.concatenate(drawn, axis=1)

    def boxes(self, draws: np.ndarray, heights: ArrayLike, widths: ArrayLike) -> np.ndarray:
        parts = np.split(draws, [self.large.count], axis=1)
        pairs = zip((self.large, self.small), parts, strict=True)
        return np.concatenate([c.boxes(part, heights, widths) for c, part in pairs], axis=1)


def make_crops(
    name: str, count: int, geometry: PatchGeometry, settings: Mapping[str, Any]
) -> RandomCrops:
    """What places the training patches.

    Args:
      name: one of `CROPS`.
      count: p, patches an image.
      geometry: of the patches. 'fixed' takes all of it, 'multiscale' its `resize` alone, and so
        does 'multicrop', of the local crops.
      settings: of the named kind alone: for 'multiscale' the ranges 'scale' and 'ratio',
        (smallest, largest) each, and 'interpolation'; for 'multicrop' the last two, 'global_scale'
        and 'local_scale' and, of the global crops, 'global_count' and 'global_resize'.

    Raises:
      InputError: an unknown name, no size to resize to where one is needed, or no local crop.
    """
    check_known('crops', name, CROPS)
    return CROPS[name](count, geometry, **settings)


def for_each_size(
    make: Callable[[Any, int], Patches], random_crops: RandomCrops, boxes: Any
) -> Patches | tuple[Patches, ...]:
    """What `make`, of (boxes [b n 4], resize), makes of the boxes [b p 4] of each size.

    Of one size that is all there is; of several it is a tuple.
    """
    ends = np.cumsum([count for count, _ in random_crops.sizes]).tolist()
    made = tuple(
        make(boxes[:, end - count : end], resize)
        for end, (count, resize) in zip(ends, random_crops.sizes, strict=True)
    )
    return made[0] if len(made) == 1 else made


def cut_boxes(
    images: Pixels, random_crops: RandomCrops, boxes: np.ndarray
) -> np.ndarray | tuple[np.ndarray, ...]:
    """The patches of a batch in boxes [b p 4]: uint8 [b p s s c], or a tuple, one a size."""
    return for_each_size(
        lambda part, resize: cut(
            images, part, resize=resize, interpolation=random_crops.interpolation
        ),
        random_crops,
        boxes,
    )


def _multiscale(
    count: int,
    geometry: PatchGeometry,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    interpolation: str,
) -> MultiscaleCrops:
    check_known('multiscale.interpolation', interpolation, INTERPOLATIONS)
    if geometry.resize < 1:
        raise InputError('crops=multiscale has crops of many sizes: give patches.resize=SIDE')
    return MultiscaleCrops(count, geometry.resize, scale, ratio, interpolation)


def _multicrop(
    count: int,
    geometry: PatchGeometry,
    *,
    global_count: int,
    global_resize: int,
    global_scale: tuple[float, float],
    local_scale: tuple[float, float],
    ratio: tuple[float, float],
    interpolation: str,
) -> MultiCrops:
    check_known('multicrop.interpolation', interpolation, INTERPOLATIONS)
    if global_resize < 1 or geometry.resize < 1:
        raise InputError(
            'crops=multicrop has crops of many sizes: give multicrop.global_resize=SIDE, and '
            'patches.resize=SIDE for the local ones'
        )
    if global_count >= count:
        raise InputError(
            f'multicrop.global_count={global_count} leaves no local crops of patches.count='
            f'{count}: give fewer, or more patches'
        )
    shared = {'ratio': ratio, 'interpolation': interpolation}
    return MultiCrops(
        MultiscaleCrops(global_count, global_resize, global_scale, **shared),
        MultiscaleCrops(count - global_count, geometry.resize, local_scale, **shared),
    )


# 'multiscale' is RandomResizedCrop
CROPS = {'fixed': FixedCrops, 'multiscale': _multiscale, 'multicrop': _multicrop}


def _between(ends: Sequence[float], u: np.ndarray) -> np.ndarray:
    return ends[0] + (ends[1] - ends[0]) * u
