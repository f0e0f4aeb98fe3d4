"""Linear classifiers of standardised features, and what they are for features as given."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bagssl_jax.probes.rows import slices
from bagssl_jax.probes.scores import ranks


class Classifier(NamedTuple):
    """A linear classifier: its logits are `x @ weights + bias`, of features as they were given."""

    weights: np.ndarray  # float32 [d c]
    bias: np.ndarray  # float32 [c]


class FittedClassifiers(NamedTuple):
    """Linear classifiers, one for each of s settings, with logits (x - mean) * scale @ W + b."""

    settings: Sequence[Any]  # s of them, hashable
    weights: jax.Array  # float32 [s d c]
    bias: jax.Array  # float32 [s c]
    mean: np.ndarray  # float32 [d]
    scale: np.ndarray  # float32 [d]

    def ranks(self, x: np.ndarray, y: np.ndarray, used: np.ndarray) -> dict[Any, np.ndarray]:
        """For each setting the ranks, int [m], of the labels of the rows that are `used`.

        Equal scores rank by class, and a label whose score is NaN comes last. A few rows at a
        time, as many as make 64 MiB of scores or features.

        Args:
          x: float32 [n d].
          y: int [n].
          used: bool [n], m of them.
        """
        count, _, num_classes = self.weights.shape
        (chosen,) = np.nonzero(used)
        size = min(len(chosen), max(1, 2**24 // max(count * num_classes, x.shape[1])))
        parts = []
        for rows in slices(len(chosen), size):
            index = np.resize(chosen[rows], size)  # repeats rows to fill the last chunk
            found = _ranks((x[index] - self.mean) * self.scale, y[index], self.weights, self.bias)
            parts.append(np.asarray(found)[:, : rows.stop - rows.start])
        return dict(zip(self.settings, np.concatenate(parts, axis=1), strict=True))

    @property
    def classifier(self) -> Classifier:
        """That of the first setting."""
        weights = self.scale[:, None] * np.asarray(self.weights[0])
        shift = np.einsum('d,dc->c', self.mean.astype(np.float64), weights)
        return Classifier(weights, (np.asarray(self.bias[0]) - shift).astype(np.float32))


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


@jax.jit
def _ranks(x, y, weights, bias):
    def of_one(weights, bias):
        return ranks(jnp.matmul(x, weights, precision=jax.lax.Precision.HIGHEST) + bias[None], y)

    return jax.vmap(of_one)(weights, bias)
