"""What features tell without labels: their effective rank, alignment and uniformity.

In float64 on the host, a few thousand rows at a time: features may be a memory map.
"""

import numpy as np
import scipy.special
from jax.typing import ArrayLike

from bagssl_jax.probes.rows import slices, unit_rows

EPSILON = 1e-7


def rankme(features: ArrayLike, *, rows: int | None = 25_600) -> float:
    """RankMe (Garrido et al. 2023, arXiv 2210.02885): exp of the entropy of the singular values.

    With s the singular values of the features, not centred, and p = s / sum(s) + 1e-7:
    exp(-sum p log p), between 1 and min(n, d). (The effective rank that training logs centres the
    features, has no epsilon and leaves out what rounding makes: another number wherever the mean
    is not 0.)

    The singular values are the roots of the eigenvalues of the Gram matrix [d d], or [n n] where
    that is smaller. In float64 they are right to about 1e-8 of the largest, less than the
    epsilon; in float32 it would be 3e-4, which for thousands of dimensions adds up.

    Args:
      features: float [n d].
      rows: at most so many, evenly spaced, are taken; 25,600 in the paper, which finds them
        enough. None takes all: at d = 2048 a million rows are 8e12 operations, a few minutes of
        two CPU cores.
    """
    x = _evenly_spaced(_matrix(features), rows)
    if len(x) < x.shape[1]:
        x = x.astype(np.float64)
        gram = x @ x.T
    else:
        gram = np.zeros((x.shape[1], x.shape[1]))
        for block in slices(len(x)):
            part = x[block].astype(np.float64)
            gram += part.T @ part
    singular = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0))
    total = singular.sum()
    if total == 0:
        return 0.0
    return float(np.exp(scipy.special.entr(singular / total + EPSILON).sum()))


def uniformity(features: ArrayLike, *, rows: int = 4096) -> float:
    """Uniformity (Wang and Isola 2020, arXiv 2005.10242), with t = 2; lower is more uniform.

    The logarithm of the mean of exp(-2 |u - v|^2) over the pairs of different rows, u and v of
    unit length: 0 where all directions are one, at least -8; about -4 for independent uniform
    directions in many dimensions.

    Args:
      features: float [n d], n >= 2.
      rows: at most so many, evenly spaced, are taken, and all their pairs: 8.4 million by default.
    """
    x = unit_rows(_evenly_spaced(_matrix(features), rows).astype(np.float64))
    if len(x) < 2:
        raise ValueError(f'uniformity is of pairs of rows, got {len(x)}')
    square = np.square(x).sum(1)
    total = 0.0
    for block in slices(len(x), 512):
        distances = square[block, None] + square[None] - 2 * x[block] @ x.T
        total += np.exp(-2 * np.maximum(distances, 0)).sum()
    # Each row with itself has distance 0 and is no pair.
    return float(np.log(max(total - len(x), np.finfo(float).tiny) / (len(x) * (len(x) - 1))))


def alignment(means: ArrayLike, patches: int) -> float:
    """Alignment (Wang and Isola 2020, arXiv 2005.10242), with alpha = 2; lower is more aligned.

    The mean of |u - v|^2 over the pairs of different patches of one image, u and v of unit
    length, and over the images: 0 where all patches of an image point in one direction, 2 where
    they are orthogonal. It takes only the means m of the p unit vectors of each bag: the sum over
    the pairs is p^2 (1 - |m|^2).

    Args:
      means: of each image's embeddings at length 1, float [n d].
      patches: p >= 2.
    """
    means = _matrix(means)
    if patches < 2:
        raise ValueError(f'alignment is of pairs of patches, got {patches}')
    total = sum(np.square(means[block], dtype=np.float64).sum() for block in slices(len(means)))
    return float(2 * patches / (patches - 1) * (1 - total / len(means)))


def _matrix(features):
    x = np.asarray(features)
    if x.ndim != 2 or not len(x):
        raise ValueError(f'expected features [n d], got {x.shape}')
    return x


def _evenly_spaced(x, rows):
    if rows is None or len(x) <= rows:
        return x
    return x[np.linspace(0, len(x) - 1, rows).astype(int)]
