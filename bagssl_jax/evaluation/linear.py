"""The linear probe: multinomial logistic regression on frozen features, to its optimum."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from bagssl_jax.evaluation.classify import linear_ranks, unstandardised
from bagssl_jax.evaluation.features import (
    check_two_classes,
    checked_splits,
    standardisation,
    standardised,
)
from bagssl_jax.evaluation.labels import held_out
from bagssl_jax.evaluation.scores import Score, score
from bagssl_jax.evaluation.softmax import fit_softmax

L2_GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class LinearProbe(NamedTuple):
    """A scored probe. Its logits are `x @ weights + bias`, for features x as they were given."""

    score: Score  # of the test split
    chosen: dict[str, float]  # 'l2'
    validation: dict[float, float]  # held-out top-1 for each l2; empty where none could be held
    weights: np.ndarray  # float32 [d c]
    bias: np.ndarray  # float32 [c]

    @property
    def top1(self) -> float:
        return self.score.top1

    @property
    def top5(self) -> float | None:
        return self.score.top5


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
    memory_limit: int | None = None,
) -> LinearProbe:
    """Chooses l2 inside the training split, refits on all of it, scores the test split once.

    Features are brought to mean 0 and standard deviation 1 per dimension, with the statistics of
    the examples that are fitted: in the selection those that are not held out, in the refit the
    whole training split. Dimensions that are constant there take no part. The objective is that
    of `fit_softmax`. The best held-out top-1 wins; between equals, the stronger regularisation.

    Held out is the last `holdout` share of each class: see `labels.held_out`. Where every class
    has one example none can be held out, so all strengths are equal: the strongest is taken,
    with which the probe all but compares with the class means.

    Args:
      train_x, test_x: float [n d] and [m d].
      train_y, test_y: integer [n] and [m], in [0, num_classes).
      num_classes: c.
      l2_grid: the strengths to choose from.
      holdout: share of each class that selects, in (0, 1).
      max_iterations: for each of the two fits.
      memory_limit: of `fit_softmax`, which states what it takes. The host holds one standardised
        copy of the training features beside those given.

    Raises:
      InputError: features that are not finite, fewer than two classes in the training split,
        or too many features and classes for the device's memory.
      ValueError: misaligned shapes, labels out of range, an unusable grid or holdout.
    """
    train_x, train_y, test_x, test_y = checked_splits(train_x, train_y, test_x, test_y, num_classes)
    grid = sorted(map(float, l2_grid), reverse=True)
    if not grid or grid[-1] <= 0:
        raise ValueError(f'l2_grid must hold positive numbers, not {l2_grid}')
    check_two_classes(train_y)

    def fit(used, strengths):
        mean, scale = standardisation(train_x, used)
        found = fit_softmax(
            standardised(train_x, used, mean, scale),
            train_y[used],
            jnp.array(strengths, jnp.float32),
            num_classes=num_classes,
            max_iterations=max_iterations,
            memory_limit=memory_limit,
        )
        return found.weights, found.bias, mean, scale

    held = held_out(train_y, holdout)
    validation = {}
    if held.any():
        held_ranks = linear_ranks(train_x, train_y, held, *fit(~held, grid))
        validation = dict(zip(grid, (held_ranks < 1).mean(1).tolist(), strict=True))
    l2 = max(grid, key=lambda l2: validation.get(l2, 0.0))  # the first of the best: the grid falls

    classifier = fit(np.ones(len(train_y), bool), [l2])
    everything = np.ones(len(test_y), bool)
    [test_ranks] = linear_ranks(test_x, test_y, everything, *classifier)
    weights, bias = unstandardised(*classifier)
    return LinearProbe(
        score=score(test_ranks, test_y, num_classes),
        chosen={'l2': l2},
        validation=validation,
        weights=weights[0],
        bias=bias[0],
    )
