"""The nearest-neighbour probe: weighted kNN on frozen features."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from bagssl_jax.evaluation.features import checked, ranks


class KnnProbe(NamedTuple):
    """Accuracies on the test split."""

    top1: float
    top5: float | None  # None when there are no more than five classes


def knn(
    train_x: ArrayLike,
    train_y: ArrayLike,
    test_x: ArrayLike,
    test_y: ArrayLike,
    *,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 2048,
) -> KnnProbe:
    """Scores the test split by the votes of each row's nearest training rows: see `knn_votes`.

    Equal votes rank by class. A class without a vote is never a prediction, also where fewer
    than five classes have any.

    Args:
      train_x, test_x: float [n d] and [m d].
      train_y, test_y: integer [n] and [m], in [0, num_classes).
      num_classes: c.
      k: neighbours; all n where n is smaller.
      temperature: of the weights.
      chunk: rows of either split at a time.

    Raises:
      InputError: features that are not finite.
      ValueError: misaligned shapes, labels out of range, k, chunk or temperature not positive.
    """
    train_x, train_y = checked(train_x, train_y, num_classes, 'training')
    test_x, test_y = checked(test_x, test_y, num_classes, 'test')
    votes = knn_votes(
        train_x, train_y, test_x, num_classes=num_classes, k=k, temperature=temperature, chunk=chunk
    )
    voted = votes[np.arange(len(test_y)), test_y] > 0
    rank = np.where(voted, ranks(votes, test_y), num_classes)
    return KnnProbe(
        top1=float((rank < 1).mean()), top5=float((rank < 5).mean()) if num_classes > 5 else None
    )


def knn_votes(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    *,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 2048,
) -> np.ndarray:
    """Votes float64 [m c] of the k nearest training rows of each test row; rows sum to 1.

    The nearness s is the cosine, and a neighbour votes for its class with weight exp(s / T)
    (Wu et al. 2018, arXiv 1805.01978, section 3.4), here divided by the sum over the row's
    neighbours, which changes no ranking and cannot overflow. The search is exact; of equally near
    rows the earlier one is taken. A zero row has cosine 0 with every row.

    Beside the features, the similarities held at once are [chunk chunk], whatever the splits.

    Arguments as for `knn`, features float32 and finite.

    Raises:
      ValueError: widths that differ; k, chunk or temperature not positive.
    """
    train_x, test_x = _unit_rows(train_x), _unit_rows(test_x)
    if train_x.shape[1] != test_x.shape[1]:
        raise ValueError(f'widths differ: {train_x.shape[1]} (train), {test_x.shape[1]} (test)')
    if k < 1 or chunk < 1 or temperature <= 0:
        raise ValueError(f'not positive: {k=}, {chunk=} or {temperature=}')
    k = min(k, len(train_x))
    rows = min(chunk, len(train_x))
    gallery = _padded(train_x, rows).reshape(-1, rows, train_x.shape[1])
    gallery, labels = jnp.asarray(gallery), jnp.asarray(_padded(train_y, rows).reshape(-1, rows))
    votes = np.empty((len(test_x), num_classes))
    queries = min(chunk, len(test_x))
    for start in range(0, len(test_x), queries):
        block = test_x[start : start + queries]
        nearness, classes = _nearest(
            jnp.asarray(_padded(block, queries)), gallery, labels, len(train_x), k=k
        )
        nearness = np.asarray(nearness, np.float64)[: len(block)]
        weights = np.exp((nearness - nearness[:, :1]) / temperature)
        weights /= weights.sum(1, keepdims=True)
        # On the host: a scatter on a GPU adds in an order that changes from run to run.
        cells = np.arange(len(block))[:, None] * num_classes + np.asarray(classes)[: len(block)]
        counts = np.bincount(cells.ravel(), weights.ravel(), minlength=len(block) * num_classes)
        votes[start : start + len(block)] = counts.reshape(len(block), num_classes)
    return votes


@functools.partial(jax.jit, static_argnames='k')
def _nearest(queries, gallery, labels, size, *, k):
    """Cosines and labels [q k] of the nearest among the first `size` rows, nearest first.

    queries [q d] and gallery [g r d] have unit rows; labels are [g r].
    """

    def merge(best, block):
        nearness, classes = best
        offset, rows, row_classes = block
        # TF32 (GPU) and bfloat16 (TPU) products would reorder close neighbours.
        cosines = jnp.matmul(queries, rows.T, precision=jax.lax.Precision.HIGHEST)
        real = offset + jnp.arange(len(rows)) < size
        cosines = jnp.where(real[None], cosines, -jnp.inf)
        cosines, index = jax.lax.top_k(cosines, min(k, len(rows)))
        # The earlier rows come first, and top_k prefers the first of equals.
        nearness, pick = jax.lax.top_k(jnp.concatenate([nearness, cosines], 1), k)
        classes = jnp.concatenate([classes, row_classes[index]], 1)
        return (nearness, jnp.take_along_axis(classes, pick, 1)), None

    nothing = jnp.full((len(queries), k), -jnp.inf), jnp.zeros((len(queries), k), labels.dtype)
    offsets = jnp.arange(len(gallery)) * gallery.shape[1]
    best, _ = jax.lax.scan(merge, nothing, (offsets, gallery, labels))
    return best


def _unit_rows(x):
    # The largest entry goes first, so that no square overflows or vanishes.
    largest = np.abs(x).max(1, keepdims=True)
    x = x / np.where(largest > 0, largest, 1)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norm > 0, norm, 1)


def _padded(x, multiple):
    """x with zero rows behind it, up to a multiple of rows."""
    return np.pad(x, [(0, -len(x) % multiple)] + [(0, 0)] * (x.ndim - 1))
