"""What every probe does with features: refuse unusable ones, standardise or normalise them.

Features may be a numpy.memmap larger than memory: nothing here copies or reads all rows at once.
"""

from collections.abc import Iterator

import jax
import numpy as np
import psutil
from jax.typing import ArrayLike

from bagssl_jax.errors import InputError

_ROWS = 4096  # at a time


def checked_splits(
    train_x: ArrayLike, train_y: ArrayLike, test_x: ArrayLike, test_y: ArrayLike, num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Both splits as `checked` gives them.

    Raises:
      InputError, ValueError: those of `checked`; ValueError also for widths that differ.
    """
    train = checked(train_x, train_y, num_classes, 'training')
    test = checked(test_x, test_y, num_classes, 'test')
    if train[0].shape[1] != test[0].shape[1]:
        raise ValueError(f'widths differ: {train[0].shape[1]} (train), {test[0].shape[1]} (test)')
    return *train, *test


def checked(
    x: ArrayLike, y: ArrayLike, num_classes: int, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Features as float32 [n d], not copied where they are that, and labels as int32 [n].

    Raises:
      InputError: features that are not finite, labels that are not integers in
        [0, num_classes).
      ValueError: misaligned or empty arrays.
    """
    x, y = np.asarray(x).astype(np.float32, copy=False), np.asarray(y)
    if x.ndim != 2 or y.shape != x.shape[:1] or not len(x):
        raise ValueError(f'expected features [n d] and labels [n], got {x.shape} and {y.shape}')
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= num_classes:
        raise InputError(
            f'{split} labels must be integers in [0, {num_classes}): is the split labelled?'
        )
    if not all(np.isfinite(x[rows]).all() for rows in slices(len(x))):
        raise InputError(
            f'features of the {split} split hold NaN or infinity: the encoder has probably '
            'diverged; probe an earlier checkpoint'
        )
    return x, y.astype(np.int32)


def check_two_classes(labels: np.ndarray) -> None:
    """Raises InputError where there is nothing to tell apart."""
    if (labels == labels[0]).all():
        raise InputError('the training split has fewer than two classes: nothing to tell apart')


def standardisation(x: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and reciprocal standard deviation, float32 [d], of the rows that are `used`, bool [n].

    Dimensions that are constant there have 0 in place of the reciprocal: they take no part.
    """

    def means(function):
        parts = (function(x[rows][used[rows]]).sum(0, dtype=np.float64) for rows in slices(len(x)))
        return (sum(parts) / used.sum()).astype(np.float32)

    mean = means(lambda block: block)
    deviation = np.sqrt(means(lambda block: np.square(block - mean)))
    # A deviation at the level of float32 rounding is noise, not signal.
    varies = deviation > 1e-6 * np.abs(mean)
    return mean, np.divide(1, deviation, out=np.zeros_like(deviation), where=varies)


def standardised(
    x: np.ndarray, used: np.ndarray, mean: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """(x - mean) * scale for the rows that are `used`, bool [n]: their only copy."""
    result = np.empty((used.sum(), x.shape[1]), np.float32)
    start = 0
    for rows in slices(len(x)):
        block = (x[rows][used[rows]] - mean) * scale
        result[start : start + len(block)] = block
        start += len(block)
    return result


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Every row divided by its length; zero rows as they are."""
    # The largest entry goes first, so that no square overflows or vanishes.
    largest = np.abs(x).max(1, keepdims=True)
    x = x / np.where(largest > 0, largest, 1)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norm > 0, norm, 1)


def slices(count: int, size: int = _ROWS) -> Iterator[slice]:
    """Consecutive slices of `size` rows that cover `count`; the last may be shorter."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def device_bytes() -> int:
    """What one device can hold: its allocator's limit; of a CPU, the memory that is free."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and 'bytes_limit' in statistics:
        return statistics['bytes_limit']
    return psutil.virtual_memory().available
