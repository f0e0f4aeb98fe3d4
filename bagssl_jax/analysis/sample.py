"""A sample of images in memory, for looks that need no more."""

from typing import NamedTuple

import numpy as np

from bagssl_jax.data.datasets import Images
from bagssl_jax.data.views import Whole
from bagssl_jax.errors import InputError

READ_AT_A_TIME = 64  # images


class Sample(NamedTuple):
    """b images of one size.

    Attributes:
      pixels: uint8 [b h w 3].
      labels: int64 [b]; -1 where an image has none.
      names: what each is called: its file, or its number.
    """

    pixels: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]


def take_sample(images: Images, count: int, *, seed: int, on_error: str) -> Sample:
    """Draws `count` images at random, in their order; all where there are fewer.

    Args:
      images: of one size.
      count: b.
      seed: of the choice.
      on_error: 'stop' at an unreadable image, or 'skip' it: the sample is smaller then.

    Raises:
      InputError: an image cannot be read, or none can.
    """
    part = images.part(count, seed=seed)
    pixels, labels, names, start = [], [], [], 0
    view = Whole(*images.image_shape)
    for batch in part.bags(view, batch_size=READ_AT_A_TIME, on_error=on_error):
        pixels.append(batch.patches[:, 0])
        labels.append(batch.labels)
        numbers = range(start, start + len(batch.labels) + len(batch.unreadable))
        names += [part.name(i) for i in numbers if i not in batch.unreadable]
        start = numbers.stop
    if not names:
        raise InputError(f'no image of {images.title} can be read')
    return Sample(np.concatenate(pixels), np.concatenate(labels), tuple(names))
