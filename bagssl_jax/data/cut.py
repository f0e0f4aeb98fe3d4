"""Cutting patches out of images, and resizing: on the host, array by array.

A box is (y, x, height, width) in pixels.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

Pixels = np.ndarray | Sequence[np.ndarray]  # uint8 [b h w c], or b images [h w c] of any sizes


def cut(
    images: Pixels, boxes: np.ndarray, *, resize: int, interpolation: str = 'area'
) -> np.ndarray:
    """The patches of a batch of images.

    Args:
      images: uint8 [b h w c], or a list of [h w c].
      boxes: int [b p 4] inside the images; all of one size unless `resize` is given.
      resize: side in pixels of the result; 0 to keep the pixels as they are.
      interpolation: of a resize, one of `INTERPOLATIONS`: 'area', as `resized`; 'bicubic', as
        Pillow's and so torchvision's of Pillow's images, and several times slower.

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
                RESIZES[interpolation](image[y : y + h, x : x + w], resize, resize, out=patch)
            else:
                patch[:] = image[y : y + h, x : x + w]
    return patches


def covering(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The center [height width c] of an image resized, in proportion, to just cover that size."""
    (h, w), (y, x) = covering_window(image.shape[:2], height, width)
    return resized(image, h, w)[y : y + height, x : x + width]


def covering_window(
    shape: tuple[int, int], height: int, width: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """What `covering` resizes an image of that (h, w) to, and where its center begins: (y, x)."""
    factor = max(height / shape[0], width / shape[1])
    h, w = (max(new, round(factor * old)) for new, old in zip((height, width), shape, strict=True))
    return (h, w), ((h - height) // 2, (w - width) // 2)


def center_crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The center [height width c] of an image resized to just cover a size 8/7 as large.

    Evaluation's usual crop: of 256 pixels on the shorter side, the center 224 by 224.
    """
    (h, w), (y, x) = center_window(image.shape[:2], height, width)
    return resized(image, h, w)[y : y + height, x : x + width]


def center_window(
    shape: tuple[int, int], height: int, width: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """As `covering_window`, of `center_crop`, rounded as torchvision's Resize and CenterCrop do.

    The longer side rounds down, and where the center is between two places it is at the even one.
    """
    h, w = round(height * 8 / 7), round(width * 8 / 7)
    if h * shape[1] >= w * shape[0]:
        w = max(w, h * shape[1] // shape[0])
    else:
        h = max(h, w * shape[0] // shape[1])
    return (h, w), (round((h - height) / 2), round((w - width) / 2))


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


def _bicubic(image: np.ndarray, height: int, width: int, out: np.ndarray) -> None:
    out[:] = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)


RESIZES = {'area': resized, 'bicubic': _bicubic}
INTERPOLATIONS = tuple(RESIZES)


def _windows(images: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The pixels in boxes that are all of one size: uint8 [b p h w c]."""
    b, height, width, c = images.shape
    h, w = boxes[0, 0, 2:].tolist()
    # A view of all windows there are, of which indexing copies rows of w * c bytes: several times
    # as fast as slice by slice.
    lines = images.reshape(b, height, width * c)
    windows = sliding_window_view(lines, (h, w * c), axis=(1, 2))[:, :, ::c]
    return windows[np.arange(b)[:, None], boxes[..., 0], boxes[..., 1]].reshape(b, -1, h, w, c)
