"""Reading images of which some may be damaged, or smaller than a patch."""

import numpy as np

from bagssl_jax.data.cut import Pixels
from bagssl_jax.data.sources import Records, Source
from bagssl_jax.errors import UnreadableImage

MANY_UNREADABLE = 100  # in a row: then something else is wrong


def read_or_replace(
    source: Source, numbers: np.ndarray, *, min_side: int
) -> tuple[Records, np.ndarray]:
    """Reads images, and in place of one that cannot be read the next one that can.

    Args:
      source: of the images.
      numbers: int [b], which of its images.
      min_side: pixels on each side, without which an image counts as unreadable.

    Returns:
      The records, and int64 [b], the number of an image that could not be read, -1 for all others.

    Raises:
      UnreadableImage: nor can any of many images that follow.
    """
    unreadable = np.full(len(numbers), -1)
    try:
        records = source.read(numbers)
        _refuse_small(source, numbers, records.images, min_side)
    except UnreadableImage:
        images, labels = [], []
        for place, number in enumerate(numbers.tolist()):
            image, label, skipped = next_readable(source, number, min_side=min_side)
            images.append(image)
            labels.append(label)
            if skipped:
                unreadable[place] = number
        records = Records(images, np.array(labels))
    return records, unreadable


def next_readable(source: Source, number: int, *, min_side: int) -> tuple[np.ndarray, int, int]:
    """The first image from `number` on that can be read.

    Returns:
      The image, uint8 [h w c], its label, and how many before it could not be read.

    Raises:
      UnreadableImage: none of `MANY_UNREADABLE`; it says why the first of them cannot.
    """
    first = None
    for skipped in range(min(MANY_UNREADABLE, len(source))):
        try:
            index = (number + skipped) % len(source)
            return *_read_one(source, index, min_side), skipped
        except UnreadableImage as error:
            first = first or error
    raise type(first)(f'{first}; and so it is with the next {skipped} images')


def unreadable_image(source: Source, index: int, *, min_side: int) -> UnreadableImage:
    """Why an image could not be read, or is smaller than `min_side`; found by reading it again."""
    try:
        _read_one(source, index, min_side)
    except UnreadableImage as error:
        return error
    return UnreadableImage(f'{source.name(index)}: could be read only at the second try')


def _read_one(source: Source, index: int, min_side: int) -> tuple[np.ndarray, int]:
    """An image and its label; UnreadableImage where there is none of `min_side` pixels."""
    numbers = np.array([index])
    images, labels = source.read(numbers)
    _refuse_small(source, numbers, images, min_side)
    return images[0], int(labels[0])


def _refuse_small(source: Source, numbers: np.ndarray, images: Pixels, min_side: int) -> None:
    """Raises UnreadableImage where an image has fewer than `min_side` pixels on a side."""
    if isinstance(images, np.ndarray):  # all of one size
        numbers, images = numbers[:1], images[:1]
    for number, image in zip(numbers.tolist(), images, strict=True):
        height, width = image.shape[:2]
        if min(height, width) < min_side:
            raise UnreadableImage(
                f'{source.name(number)}: is {height}x{width} pixels, smaller than patches of '
                f'{min_side}x{min_side}'
            )
