"""The linear probe: multinomial logistic regression on frozen features, to its optimum."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike

from bagssl_jax.probes.classifiers import FittedClassifiers, standardisation, standardised
from bagssl_jax.probes.selection import Probed, choose_and_score
from bagssl_jax.probes.softmax import fit_softmax
from bagssl_jax.probes.splits import check_two_classes, labelled_splits

L2_GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class Setting(NamedTuple):
    """The hyper-parameter of one classifier."""

    l2: float


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
) -> Probed:
    """Chooses l2 inside the training split, refits on all of it, scores the test split once.

    Features are brought to mean 0 and standard deviation 1 per dimension, with the statistics of
    the examples that are fitted: in the selection those that are not held out, in the refit the
    whole training split. Dimensions that are constant there take no part. The objective is that
    of `fit_softmax`. How l2 is chosen: see `selection.choose_and_score`. Between equals the
    stronger regularisation is taken; where none can be held out that is the strongest of all,
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
    splits = labelled_splits(train_x, train_y, test_x, test_y, num_classes)
    grid = [Setting(l2) for l2 in sorted(map(float, l2_grid), reverse=True)]
    if not grid or grid[-1].l2 <= 0:
        raise ValueError(f'l2_grid must hold positive numbers, not {l2_grid}')
    check_two_classes(splits.train_y)

    def fit(used, settings):
        mean, scale = standardisation(splits.train_x, used)
        found = fit_softmax(
            standardised(splits.train_x, used, mean, scale),
            splits.train_y[used],
            jnp.array([setting.l2 for setting in settings], jnp.float32),
            num_classes=num_classes,
            max_iterations=max_iterations,
            memory_limit=memory_limit,
        )
        return FittedClassifiers(settings, found.weights, found.bias, mean, scale)

    return choose_and_score(splits, grid, fit, num_classes=num_classes, holdout=holdout)
