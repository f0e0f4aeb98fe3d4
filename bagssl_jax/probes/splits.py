"""The two splits that a probe learns from and is scored on, once they are found to be usable."""

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from bagssl_jax.errors import InputError
from bagssl_jax.probes.rows import slices


class Splits(NamedTuple):
    """Features and labels to learn from, and to be scored on."""

    train_x: np.ndarray  # float32 [n d], finite
    train_y: np.ndarray  # int32 [n]
    test_x: np.ndarray  # float32 [m d], finite
    test_y: np.ndarray  # int32 [m]


def labelled_splits(
    train_x: ArrayLike, train_y: ArrayLike, test_x: ArrayLike, test_y: ArrayLike, num_classes: int
) -> Splits:
    """Both splits, where their features are finite and their labels known.

    Features that are float32 are not copied: they may be a numpy.memmap larger than memory.

    Raises:
      InputError: features that are not finite, labels that are not integers in
        [0, num_classes).
      ValueError: misaligned or empty arrays, or widths that differ.
    """
    train_x, train_y = _labelled(train_x, train_y, num_classes, 'training')
    test_x, test_y = _labelled(test_x, test_y, num_classes, 'test')
    if train_x.shape[1] != test_x.shape[1]:
        raise ValueError(f'widths differ: {train_x.shape[1]} (train), {test_x.shape[1]} (test)')
    return Splits(train_x, train_y, test_x, test_y)


def check_two_classes(labels: np.ndarray) -> None:
    """Raises InputError where there is nothing to tell apart."""
    if (labels == labels[0]).all():
        raise InputError('the training split has fewer than two classes: nothing to tell apart')


def _labelled(x, y, num_classes, split):
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
