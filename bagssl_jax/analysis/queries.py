"""The patches that pictures are about: drawn at random, or chosen."""

import collections
import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from bagssl_jax.analysis.sample import Sample
from bagssl_jax.data.datasets import Images
from bagssl_jax.embedding.encoder import FrozenEncoder
from bagssl_jax.errors import InputError


class Query(NamedTuple):
    """A patch of an image that others are compared with.

    Attributes:
      image: its number in the sample, or -1 where it is not of the sample.
      label: of the image; -1 where it has none.
      pixels: of the image: uint8 [h w 3].
      box: int [4], (y, x, height, width).
    """

    image: int
    label: int
    pixels: np.ndarray
    box: np.ndarray


def drawn_queries(sample: Sample, boxes: np.ndarray, count: int, *, seed: int) -> list[Query]:
    """Patches at random, of as many different classes, then images, as can be.

    Of a random half of an image's places the one of most contrast is taken, and of a random half
    of the images those of most: a plain patch shows little.

    Args:
      sample: where they are drawn from.
      boxes: int [p 4], the places.
      count: patches; no more than half of the images, or one.
      seed: of the choice.
    """
    rng = np.random.default_rng([seed, len(boxes)])
    candidates = []
    for i in rng.permutation(len(sample.labels))[: max(2, 4 * count)]:
        gray = cv2.cvtColor(sample.pixels[i], cv2.COLOR_RGB2GRAY)
        places = rng.permutation(boxes)[: math.ceil(len(boxes) / 2)]
        contrasts = [gray[y : y + h, x : x + w].std() for y, x, h, w in places]
        box = places[np.argmax(contrasts)]
        query = Query(int(i), int(sample.labels[i]), sample.pixels[i], box)
        candidates.append((max(contrasts), query))
    candidates.sort(key=lambda pair: -pair[0])
    queries = [query for _, query in candidates[: math.ceil(len(candidates) / 2)]]
    seen = collections.Counter()
    rounds = []
    for query in queries:
        rounds.append(seen[query.label])
        seen[query.label] += 1
    order = np.argsort(rounds if sample.labels.max() >= 0 else [0] * len(rounds), kind='stable')
    return [queries[i] for i in order[:count]]


def chosen_queries(
    chosen: Sequence[int], images: Images, sample: Sample, encoder: FrozenEncoder, *, key: str
) -> list[Query]:
    """The patches around chosen pixels; as near to them as the edges of the image let.

    Args:
      chosen: of each patch, the number of the image in its split, from 0, and y and x of the pixel.
      images: those numbered.
      sample: of them.
      encoder: of whose geometry the patches are.
      key: the configuration's, for errors.

    Raises:
      InputError: they are not three numbers each, or not of these images; or one cannot be read.
    """
    if len(chosen) % 3:
        raise InputError(f'{key}={tuple(chosen)}: give three numbers a patch, its image, y and x')
    height, width = images.image_shape
    side = encoder.geometry.side(height, width)
    queries = []
    for number, y, x in np.reshape(chosen, (-1, 3)).astype(int).tolist():
        if number >= len(images):
            raise InputError(f'{key}: no image {number:,} among {len(images):,}, counted from 0')
        if y >= height or x >= width:
            raise InputError(f'{key}: no pixel {y}, {x} in an image of {height}x{width}')
        name = images.name(number)
        index = sample.names.index(name) if name in sample.names else -1
        [pixels], [label] = images.source.read(np.array([number]))
        corner = np.clip([y - side // 2, x - side // 2], 0, [height - side, width - side])
        queries.append(Query(index, int(label), pixels, np.array([*corner, side, side])))
    return queries
