"""Patch geometry: where the patches of an image lie, and how they are cut out.

A box is (y, x, height, width) in pixels.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike

from bagssl_jax.errors import InputError

Images = np.ndarray | Sequence[np.ndarray]  # uint8 [b h w c], or b images [h w c] of any sizes


class RandomCrops(Protocol):
    """How the training patches of an image are placed: `count` boxes, resized to `resize`.

    The draws do not depend on the images, so that one process can draw for a global batch and
    take its part without knowing the other images' sizes.
    """

    count: int
    size: int  # side in pixels of every box; 0 where it depends on the image
    resize: int  # side in pixels of a patch; 0 to keep the pixels as they are

    def draw(self, rng: np.random.Generator, images: int) -> np.ndarray:
        """Numbers in [0, 1) for so many images: float64 [b p k], k of them a patch."""

    def boxes(self, draws: np.ndarray, heights: ArrayLike, widths: ArrayLike) -> np.ndarray:
        """The boxes in images of these sizes, int [b] each: int32 [b p 4]."""


@dataclasses.dataclass(frozen=True)
class FixedCrops:
    """Squares of one scale, uniform over all places; as in the configuration's `patches`."""

    count: int
    size: int
    scale: float
    resize: int

    def draw(self, rng: np.random.Generator, images: int) -> np.ndarray:
        return rng.random((images, self.count, 2))

    def boxes(self, draws: np.ndarray, heights: ArrayLike, widths: ArrayLike) -> np.ndarray:
        heights, widths = np.asarray(heights), np.asarray(widths)
        sides = patch_sides(heights, widths, size=self.size, scale=self.scale)
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
    """

    count: int
    resize: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    size: int = 0

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


def make_crops(name: str, patches: Mapping[str, Any], multiscale: Mapping[str, Any]) -> RandomCrops:
    """What places the training patches.

    Args:
      name: 'fixed', squares of one scale, or 'multiscale', RandomResizedCrop.
      patches: count, size, scale and resize, as in the configuration.
      multiscale: scale and ratio, likewise.

    Raises:
      InputError: an unknown name, or 'multiscale' with unusable ranges or no size to resize to.
    """
    if name == 'fixed':
        return FixedCrops(**patches)
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
    return MultiscaleCrops(patches['count'], patches['resize'], scale, ratio)


def check_patches(patches: Mapping[str, Any], image_shape: tuple[int, int] | None) -> None:
    """Raises InputError where patches of different images may come out in different sizes.

    Args:
      patches: size and resize, as in the configuration.
      image_shape: (height, width) of every image; None where they may differ.
    """
    if patches['resize'] < 0:
        raise InputError(f'patches.resize={patches["resize"]} must be a size in pixels, or 0')
    if image_shape is None and not patches['size'] and not patches['resize']:
        raise InputError(
            'the images may differ in size, and patches.scale in pixels with them: give '
            'patches.resize=SIDE or patches.size=SIDE'
        )


def patch_side(height: int, width: int, *, size: int, scale: float) -> int:
    """Side in pixels of a square patch of one image: `patch_sides` of one."""
    return int(patch_sides(np.array([height]), np.array([width]), size=size, scale=scale)[0])


def patch_sides(heights: np.ndarray, widths: np.ndarray, *, size: int, scale: float) -> np.ndarray:
    """Sides in pixels of the square patches of images of these sizes, int [b] each: int32 [b].

    Args:
      heights, widths: of the images.
      size: the side in pixels; 0 to use `scale`.
      scale: the patch's share of the image's area, in (0, 1]; where a square of that area is
        higher or wider than the image, a panorama say, it is the largest that fits.

    Raises:
      InputError: `size` is larger than an image, or the scale is out of range.
    """
    if not size and not 0 < scale <= 1:
        raise InputError(f'patches.scale={scale} is not a share of the area: give one in (0, 1]')
    if size:
        sides = np.full(heights.shape, size, np.int32)
    else:
        sides = np.maximum(1, np.rint(np.sqrt(scale * heights * widths))).astype(np.int32)
        sides = np.minimum(sides, np.minimum(heights, widths))
    outside = (sides < 1) | (sides > np.minimum(heights, widths))
    if outside.any():
        i = outside.argmax()
        raise InputError(
            f'a patch of {size}x{size} pixels (patches.size={size}) does not fit into an image of '
            f'{heights[i]}x{widths[i]}: give a smaller one'
        )
    return sides


def grid_places(count: int) -> np.ndarray:
    """An even grid of `count` places in an image: float64 [count 2], (y, x) from 0 to 1.

    0 and 1 stand for the edges that a patch can reach. The rows are as many as are nearest to the
    count's root, and share the places as evenly as can be; row by row, from the upper left. A
    square count is a square grid, one place is the center. Equal places of two grids are equal
    to the last bit, so that smaller grids can be found in larger ones.

    Raises:
      InputError: no place.
    """
    if count < 1:
        raise InputError(f'a grid of {count} patches is none: give 1 or more')
    rows = round(math.sqrt(count))
    places = []
    for i in range(rows):
        columns = (i + 1) * count // rows - i * count // rows
        y = i / (rows - 1) if rows > 1 else 0.5
        places += [(y, j / (columns - 1) if columns > 1 else 0.5) for j in range(columns)]
    return np.array(places)


def boxes_at(places: np.ndarray, height: int, width: int, *, side: int) -> np.ndarray:
    """The square boxes at `places` [p 2], as in `grid_places`: int32 [p 4]."""
    room = np.array([height - side, width - side])
    corners = np.ceil(places * room - 0.5)  # halves round down, as those of a center crop
    return np.concatenate([corners, np.full_like(corners, side)], axis=1).astype(np.int32)


def grid_boxes(height: int, width: int, *, side: int, count: int) -> np.ndarray:
    """The boxes of a grid of `count` patches that reaches the edges: int32 [count 4]."""
    return boxes_at(grid_places(count), height, width, side=side)


def cut(images: Images, boxes: np.ndarray, *, resize: int) -> np.ndarray:
    """The patches of a batch of images.

    Args:
      images: uint8 [b h w c], or a list of [h w c].
      boxes: int [b p 4] inside the images; all of one size unless `resize` is given.
      resize: side in pixels of the result; 0 to keep the pixels as they are.

    Returns:
      uint8 [b p s s c].
    """
    if isinstance(images, np.ndarray) and (not resize or (boxes[..., 2:] == resize).all()):
        return _windows(images, boxes)
    height, width = (resize, resize) if resize else boxes[0, 0, 2:].tolist()
    patches = np.empty((*boxes.shape[:2], height, width, images[0].shape[-1]), np.uint8)
    for image, places, bag in zip(images, boxes.tolist(), patches, strict=True):
        for (y, x, h, w), patch in zip(places, bag, strict=True):
            if resize:
                resized(image[y : y + h, x : x + w], resize, resize, out=patch)
            else:
                patch[:] = image[y : y + h, x : x + w]
    return patches


def covering(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The center [height width c] of an image resized, in proportion, to just cover that size."""
    factor = max(height / image.shape[0], width / image.shape[1])
    h, w = (
        max(new, round(factor * old))
        for new, old in zip((height, width), image.shape[:2], strict=True)
    )
    y, x = (h - height) // 2, (w - width) // 2
    return resized(image, h, w)[y : y + height, x : x + width]


def center_crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The center [height width c] of an image resized to just cover a size 8/7 as large.

    Evaluation's usual crop: of 256 pixels on the shorter side, the center 224 by 224.
    """
    larger = covering(image, round(height * 8 / 7), round(width * 8 / 7))
    y, x = (larger.shape[0] - height) // 2, (larger.shape[1] - width) // 2
    return larger[y : y + height, x : x + width]


def resized(
    image: np.ndarray, height: int, width: int, out: np.ndarray | None = None
) -> np.ndarray:
    """uint8 [h w 3] to uint8 [height width 3], in `out` if given.

    Area averages along an axis that shrinks; along one that grows, linear between the centers of
    pixels, with the edges repeated.
    """
    h, w = image.shape[:2]
    grows = height > h or width > w
    if grows and (height < h or width < w):
        # cv2 averages areas only where no axis grows.
        smaller = (min(width, w), min(height, h))
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
    interpolation = cv2.INTER_LINEAR if grows else cv2.INTER_AREA
    return cv2.resize(image, (width, height), out, interpolation=interpolation)


def _windows(images: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The pixels in boxes that are all of one size: uint8 [b p h w c]."""
    b, height, width, c = images.shape
    h, w = boxes[0, 0, 2:].tolist()
    # A view of all windows there are, of which indexing copies rows of w * c bytes: several times
    # as fast as slice by slice.
    lines = images.reshape(b, height, width * c)
    windows = sliding_window_view(lines, (h, w * c), axis=(1, 2))[:, :, ::c]
    return windows[np.arange(b)[:, None], boxes[..., 0], boxes[..., 1]].reshape(b, -1, h, w, c)


def _between(ends: Sequence[float], u: np.ndarray) -> np.ndarray:
    return ends[0] + (ends[1] - ends[0]) * u
