"""The linear probe: multinomial logistic regression on frozen features."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from bagssl_jax.errors import InputError
from bagssl_jax.evaluation.features import checked, ranks
from bagssl_jax.evaluation.softmax import fit_softmax

L2_GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class LinearProbe(NamedTuple):
    """A scored probe. Its logits are `x @ weights + bias`, for features x as they were given."""

    top1: float  # on the test split
    top5: float | None  # None when there are no more than five classes
    l2: float  # the chosen one
    validation: dict[float, float]  # held-out top-1 for each l2
    weights: np.ndarray  # float32 [d c]
    bias: np.ndarray  # float32 [c]


def fit_linear(
    train_x: ArrayLike,
    train_y: ArrayLike,
    test_x: ArrayLike,
    test_y: ArrayLike,
    *,
    num_classes: int,
    l2_grid: Sequence[float] = L2_GRID,
    holdout: float = 0.1,
    max_iterations: int = 300,
) -> LinearProbe:
    """Chooses l2 inside the training split, refits on all of it, scores the test split once.

    Features are brought to mean 0 and standard deviation 1 per dimension, with the statistics of
    the examples that are fitted: in the selection those that are not held out, in the refit the
    whole training split. Dimensions that are constant there take no part. The objective is that
    of `fit_softmax`. The best held-out top-1 wins; between equals, the stronger regularisation.

    Held out is the last `holdout` share of each class, in the order given: frames of one film or
    tiles of one photograph are neighbours in that order, and a random choice would put them on
    both sides. A class of two or more is on both sides, a class of one is only fitted.

    Args:
      train_x, test_x: float [n d] and [m d].
      train_y, test_y: integer [n] and [m], in [0, num_classes).
      num_classes: c.
      l2_grid: the strengths to choose from.
      holdout: share of each class that selects, in (0, 1).
      max_iterations: for each of the two fits.

    Raises:
      InputError: features that are not finite, fewer than two classes in the training split,
        or no class in it with two examples.
      ValueError: misaligned shapes, labels out of range, an unusable grid or holdout.
    """
    train_x, train_y = checked(train_x, train_y, num_classes, 'training')
    test_x, test_y = checked(test_x, test_y, num_classes, 'test')
    if train_x.shape[1] != test_x.shape[1]:
        raise ValueError(f'widths differ: {train_x.shape[1]} (train), {test_x.shape[1]} (test)')
    grid = sorted(map(float, l2_grid), reverse=True)
    if not grid or grid[-1] <= 0:
        raise ValueError(f'l2_grid must hold positive numbers, not {l2_grid}')
    if not 0 < holdout < 1:
        raise ValueError(f'holdout must be between 0 and 1, not {holdout}')
    if len(np.unique(train_y)) < 2:
        raise InputError('the training split has fewer than two classes: nothing to tell apart')
    held = _held_out(train_y, holdout)
    if not held.any():
        raise InputError(
            'every class of the training split has one example: the linear probe needs two of '
            'some class, to choose its regularisation on one of them'
        )

    fit = functools.partial(fit_softmax, num_classes=num_classes, max_iterations=max_iterations)
    mean, scale = _standardisation(train_x[~held])
    found = fit((train_x[~held] - mean) * scale, train_y[~held], jnp.array(grid, jnp.float32))
    val_x, val_y = (train_x[held] - mean) * scale, train_y[held]
    validation = [
        float((ranks(val_x @ w + b, val_y) < 1).mean())
        for w, b in zip(np.asarray(found.weights), np.asarray(found.bias), strict=True)
    ]
    l2 = grid[int(np.argmax(validation))]  # the first of the best: the grid falls

    mean, scale = _standardisation(train_x)
    found = fit((train_x - mean) * scale, train_y, jnp.array([l2], jnp.float32))
    weights, bias = np.asarray(found.weights[0]), np.asarray(found.bias[0])
    rank = ranks(((test_x - mean) * scale) @ weights + bias, test_y)
    weights = scale[:, None] * weights
    return LinearProbe(
        top1=float((rank < 1).mean()),
        top5=float((rank < 5).mean()) if num_classes > 5 else None,
        l2=l2,
        validation=dict(zip(grid, validation, strict=True)),
        weights=weights,
        bias=(bias - mean.astype(np.float64) @ weights).astype(np.float32),
    )


def _held_out(labels, share):
    """Boolean [n]: the last examples of each class."""
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        (members,) = np.nonzero(labels == label)
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        held[members[len(members) - count :]] = True
    return held


def _standardisation(x):
    """Mean and reciprocal standard deviation [d]; 0 in place of the latter for constants."""
    mean = x.mean(0, dtype=np.float64).astype(np.float32)
    deviation = np.sqrt(np.square(x - mean).mean(0, dtype=np.float64)).astype(np.float32)
    # A deviation at the level of float32 rounding is noise, not signal.
    varies = deviation > 1e-6 * np.abs(mean)
    return mean, np.divide(1, deviation, out=np.zeros_like(deviation), where=varies)
