"""Scores of a probe: accuracies, per class too, and how sure a test split can make them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats


class Score(NamedTuple):
    """What a probe gets right on a test split; all but `n` are shares in [0, 1]."""

    top1: float
    top5: float | None  # None when there are no more than five classes
    per_class: tuple[float | None, ...]  # top-1 in each class; None where it has no test image
    interval: tuple[float, float]  # Wilson's, of 95%, around top1
    n: int


def score(ranks: np.ndarray, labels: np.ndarray, num_classes: int) -> Score:
    """The score of a split whose labels have these ranks.

    The interval takes the test images as drawn independently; it says nothing of what another
    training, or another draw of the training images, would have given.

    Args:
      ranks: int [n], of `ranks`: 0 where the prediction is right.
      labels: int [n], in [0, num_classes).
      num_classes: c.
    """
    right = ranks < 1
    sizes = np.bincount(labels, minlength=num_classes)
    hits = np.bincount(labels, weights=right, minlength=num_classes)
    return Score(
        top1=float(right.mean()),
        top5=float((ranks < 5).mean()) if num_classes > 5 else None,
        per_class=tuple(
            float(hit / size) if size else None for hit, size in zip(hits, sizes, strict=True)
        ),
        interval=wilson(int(right.sum()), len(right)),
        n=len(right),
    )


def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, without continuity correction.

    It stays inside [0, 1] also for proportions near 0 or 1, where the usual
    p +- z sqrt(p (1 - p) / n) fails.
    """
    found = scipy.stats.binomtest(successes, trials).proportion_ci(confidence, method='wilson')
    return float(found.low), float(found.high)


def paired(
    first: np.ndarray, second: np.ndarray, quantile: float = 1.96
) -> tuple[float, tuple[float, float]]:
    """The mean of first - second over images, and an interval that takes them as drawn at random.

    Agresti and Min (Statistics in Medicine 24, 2005): the normal interval of matched proportions
    with half an image more in each of the four cells, which is two images: one difference of 1 and
    one of -1 by half each, so that it has a width where no image differs. Here first and second may
    also be means over several conditions, with the same two images.

    Args:
      first, second: [n], of the same images, from 0 to 1: whether, or in which share of conditions,
        an image is told right.
      quantile: of the normal distribution: 1.96 for 95%.

    Returns:
      The difference, and the interval, which is around the one with those images.
    """
    differences = np.asarray(first, np.float64) - second
    images = len(differences) + 2
    mean = differences.sum() / images
    variance = (np.square(differences).sum() + 1) / images - mean**2
    margin = quantile * np.sqrt(variance / images)
    low, high = max(-1.0, mean - margin), min(1.0, mean + margin)
    return float(differences.mean()), (float(low), float(high))


def ranks(scores: np.ndarray | jax.Array, labels: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    """Classes that score before each row's own label, int [n]; equal scores rank by class.

    A label whose score is NaN comes after every class: a diverged classifier is right nowhere.

    Args:
      scores: [n c], of NumPy or JAX, and so is the result.
      labels: int [n].
    """
    xp = jnp if isinstance(scores, jax.Array) else np
    own = xp.take_along_axis(scores, labels[:, None], axis=1)
    before = xp.arange(scores.shape[1])[None] < labels[:, None]
    return ((scores > own) | ((scores == own) & before) | xp.isnan(own)).sum(axis=1)
