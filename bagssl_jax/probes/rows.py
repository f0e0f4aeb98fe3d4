"""Rows of features, a few at a time: features may be a numpy.memmap larger than memory."""

from collections.abc import Iterator

import numpy as np

_ROWS = 4096  # at a time


def slices(count: int, size: int = _ROWS) -> Iterator[slice]:
    """Consecutive slices of `size` rows that cover `count`; the last may be shorter."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Every row of x, float [n d], divided by its length; zero rows as they are."""
    # The largest entry goes first, so that no square overflows or vanishes.
    largest = np.abs(x).max(1, keepdims=True)
    x = x / np.where(largest > 0, largest, 1)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norm > 0, norm, 1)
