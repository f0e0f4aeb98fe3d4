"""Patch geometry: where the patches of an image lie, and how they are cut out.

A box is (y, x, height, width) in pixels.
"""

import math

import cv2
import numpy as np

from bagssl_jax.errors import InputError


def patch_side(height: int, width: int, *, size: int, scale: float) -> int:
    """Side in pixels of a square patch of an image of `height` x `width`.

    Args:
      size: the side in pixels; 0 to use `scale`.
      scale: the patch's share of the image's area, in (0, 1].

    Raises:
      InputError: the patch is larger than the image, or the scale is out of range.
    """
    if not size and not 0 < scale <= 1:
        raise InputError(f'patches.scale={scale} is not a share of the area: give one in (0, 1]')
    side = size or max(1, round(math.sqrt(scale * height * width)))
    if not 0 < side <= min(height, width):
        given = f'patches.size={size}' if size else f'patches.scale={scale}'
        raise InputError(
            f'a patch of {side}x{side} pixels ({given}) does not fit into an image of '
            f'{height}x{width}: give a smaller one'
        )
    return side


def random_boxes(
    rng: np.random.Generator, height: int, width: int, *, side: int, count: int
) -> np.ndarray:
    """`count` square boxes, uniform over all places inside the image: int64 [count 4]."""
    y = rng.integers(0, height - side + 1, count)
    x = rng.integers(0, width - side + 1, count)
    return np.stack([y, x, np.full(count, side), np.full(count, side)], axis=1)


def random_resized_boxes(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    count: int,
) -> np.ndarray:
    """`count` boxes of random area, aspect and place, as in torchvision's RandomResizedCrop.

    The share of the area is uniform in `scale`, the logarithm of width / height uniform in that
    of `ratio`; sides are rounded. Of ten tries the first that fits is taken, at a uniform place;
    where none fits, the largest center crop with an aspect inside `ratio`.

    Returns:
      int64 [count 4].
    """
    tries = (count, 10)
    area = height * width * rng.uniform(*scale, tries)
    aspect = np.exp(rng.uniform(*np.log(ratio), tries))
    heights = np.rint(np.sqrt(area / aspect)).astype(int)
    widths = np.rint(np.sqrt(area * aspect)).astype(int)
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    first = fits.argmax(axis=1)
    rows = np.arange(count)
    h, w = heights[rows, first], widths[rows, first]
    y, x = (
        rng.integers(0, np.maximum(height - h, 0) + 1),
        rng.integers(0, np.maximum(width - w, 0) + 1),
    )
    center = _center_box(height, width, ratio)
    return np.where(fits.any(axis=1, keepdims=True), np.stack([y, x, h, w], axis=1), center)


def grid_boxes(height: int, width: int, *, side: int, count: int) -> np.ndarray:
    """An even grid of `count` (a square number) boxes that reaches the edges: int64 [count 4].

    One box is the center crop. Row by row, from the upper left.
    """
    across = math.isqrt(max(0, count))
    if across == 0 or across**2 != count:
        raise InputError(f'a grid of {count} patches is not square: give 1, 4, 9, 16, ...')
    if across == 1:
        ys, xs = np.array([(height - side) // 2]), np.array([(width - side) // 2])
    else:
        ys = np.rint(np.linspace(0, height - side, across)).astype(int)
        xs = np.rint(np.linspace(0, width - side, across)).astype(int)
    y, x = np.meshgrid(ys, xs, indexing='ij')
    sides = np.full(count, side)
    return np.stack([y.ravel(), x.ravel(), sides, sides], axis=1)


def _center_box(height: int, width: int, ratio: tuple[float, float]) -> np.ndarray:
    aspect = np.clip(width / height, *ratio)
    h, w = min(height, round(width / aspect)), min(width, round(height * aspect))
    return np.array([(height - h) // 2, (width - w) // 2, h, w])


def cut(image: np.ndarray, boxes: np.ndarray, *, resize: int) -> np.ndarray:
    """The patches of an image.

    Args:
      image: uint8 [h w c].
      boxes: int [p 4]; all of one size unless `resize` is given.
      resize: side in pixels of the result; 0 to keep the pixels as they are.

    Returns:
      uint8 [p s s c].
    """
    patches = [image[y : y + h, x : x + w] for y, x, h, w in boxes.tolist()]
    if resize:
        patches = [resized(patch, resize, resize) for patch in patches]
    return np.stack(patches)


def covering(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The center [height width c] of an image resized, in proportion, to just cover that size."""
    factor = max(height / image.shape[0], width / image.shape[1])
    h, w = (
        max(new, round(factor * old))
        for new, old in zip((height, width), image.shape[:2], strict=True)
    )
    y, x = (h - height) // 2, (w - width) // 2
    return resized(image, h, w)[y : y + height, x : x + width]


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [h w c] to uint8 [height width c]: area averages to shrink, else bilinear."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height * width < image.shape[0] * image.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=interpolation)
