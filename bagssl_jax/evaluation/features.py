"""What every probe does with features and labels: refuse unusable ones, and rank scores."""

import numpy as np
from jax.typing import ArrayLike

from bagssl_jax.errors import InputError


def checked(
    x: ArrayLike, y: ArrayLike, num_classes: int, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Features as float32 [n d] and labels as int32 [n].

    Raises:
      InputError: features that are not finite, labels that are not integers in
        [0, num_classes).
      ValueError: misaligned or empty arrays.
    """
    x, y = np.asarray(x).astype(np.float32), np.asarray(y)
    if x.ndim != 2 or y.shape != x.shape[:1] or not len(x):
        raise ValueError(f'expected features [n d] and labels [n], got {x.shape} and {y.shape}')
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= num_classes:
        raise InputError(
            f'{split} labels must be integers in [0, {num_classes}): is the split labelled?'
        )
    if not np.isfinite(x).all():
        raise InputError(
            f'features of the {split} split hold NaN or infinity: the encoder has probably '
            'diverged; probe an earlier checkpoint'
        )
    return x, y.astype(np.int32)


def ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Classes that score before each row's own label, int [n]; equal scores rank by class.

    Args:
      scores: [n c].
      labels: int [n].
    """
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    before = np.arange(scores.shape[1])[None] < labels[:, None]
    return ((scores > own) | ((scores == own) & before)).sum(axis=1)
