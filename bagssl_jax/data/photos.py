"""`photos`: a small data set cut from the photographs that scikit-image ships; no download.

The task is to tell from which of eight photographs a tile was cut.
"""

import functools
import hashlib
import importlib.resources
import math

import cv2
import numpy as np

from bagssl_jax.data.sources import ArraySource
from bagssl_jax.data.splits import split_ranges

PHOTOGRAPHS = {
    'astronaut': 'astronaut.png',
    'chelsea': 'chelsea.png',
    'coffee': 'coffee.png',
    'hubble_deep_field': 'hubble_deep_field.jpg',
    'immunohistochemistry': 'ihc.png',
    'retina': 'retina.jpg',
    'rocket': 'rocket.jpg',
    'stereo_motorcycle': 'motorcycle_left.png',
}
TILES_PER_CLASS = {'train': 400, 'test': 100}
TILE = 48
BLOCK = 80
AREA = 480 * 480  # pixels a photograph is brought to, so that scale does not give it away


def load_photos(split: str) -> ArraySource:
    """The tiles of a split in TFDS's notation: 'train', 'train[:10%]', 'train[:500]+test'.

    Raises:
      InputError: there is no such split.
    """
    names = tuple(PHOTOGRAPHS)
    sizes = {name: count * len(names) for name, count in TILES_PER_CLASS.items()}
    tiles_of = functools.cache(tiles)
    parts = [
        [array[start:stop] for array in tiles_of(part)]
        for part, start, stop in split_ranges(split, sizes)
    ]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return ArraySource(images, labels, names, hashlib.sha256(images).hexdigest(), f'photos {split}')


def tiles(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Tiles and labels of 'train' or 'test'.

    Every photograph is divided into blocks of 80x80 pixels, a quarter of them for testing, and
    no tile crosses the edge of a block: the splits share no pixel. Classes alternate, and the
    tiles of a class are ordered by block.

    Returns:
      uint8 [n 48 48 3] and int64 [n]: 400 tiles a class to train, 100 to test.
    """
    count = TILES_PER_CLASS[split]
    images = np.empty((count, len(PHOTOGRAPHS), TILE, TILE, 3), np.uint8)
    for label, name in enumerate(PHOTOGRAPHS):
        photograph = load_photograph(name)
        corners = tile_corners(*photograph.shape[:2], split=split, seed=label)
        for i, (y, x) in enumerate(corners):
            images[i, label] = photograph[y : y + TILE, x : x + TILE]
    labels = np.tile(np.arange(len(PHOTOGRAPHS)), count)
    return images.reshape(-1, TILE, TILE, 3), labels  # [i l h w c] -> [n h w c]


def load_photograph(name: str) -> np.ndarray:
    """One photograph of `PHOTOGRAPHS`, resized to `AREA` pixels: uint8 [h w 3], RGB."""
    file = importlib.resources.files('skimage.data').joinpath(PHOTOGRAPHS[name])
    image = cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_COLOR_RGB)
    height, width = image.shape[:2]
    factor = math.sqrt(AREA / (height * width))
    size = round(width * factor), round(height * factor)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)


def tile_corners(height: int, width: int, *, split: str, seed: int) -> np.ndarray:
    """Upper left corners (y, x) of one photograph's tiles: int64 [tiles 2], ordered by block."""
    rows, columns = np.divmod(np.arange((height // BLOCK) * (width // BLOCK)), width // BLOCK)
    # A knight's-move lattice spreads the test blocks evenly over the photograph.
    is_test = (2 * rows + columns) % 4 == 0
    chosen = np.flatnonzero(is_test == (split == 'test'))
    count = TILES_PER_CLASS[split]
    block = chosen[np.arange(count) * len(chosen) // count]  # equally many tiles a block
    rng = np.random.default_rng([seed, split == 'test'])
    inside = rng.integers(0, BLOCK - TILE + 1, (count, 2))
    return BLOCK * np.stack([rows[block], columns[block]], axis=1) + inside
