"""Linear classifiers at work: the ranks of labels under many of them at once."""

import jax
import jax.numpy as jnp
import numpy as np

from bagssl_jax.evaluation.features import slices
from bagssl_jax.evaluation.scores import ranks


def linear_ranks(
    x: np.ndarray,
    y: np.ndarray,
    used: np.ndarray,
    weights: jax.Array,
    bias: jax.Array,
    mean: np.ndarray,
    scale: np.ndarray,
) -> np.ndarray:
    """Classes that score before the label of each row that is `used`: int [s m].

    Scores are (x - mean) * scale @ weights + bias; equal ones rank by class, and a label whose
    score is NaN comes last. A few rows at a time, as many as make 64 MiB of scores or features.

    Args:
      x: float32 [n d].
      y: int [n].
      used: bool [n], m of them.
      weights: float32 [s d c].
      bias: float32 [s c].
      mean, scale: float32 [d].
    """
    settings, _, num_classes = weights.shape
    (chosen,) = np.nonzero(used)
    size = min(len(chosen), max(1, 2**24 // max(settings * num_classes, x.shape[1])))
    parts = []
    for rows in slices(len(chosen), size):
        index = np.resize(chosen[rows], size)  # repeats rows to fill the last chunk
        found = _ranks((x[index] - mean) * scale, y[index], weights, bias)
        parts.append(np.asarray(found)[:, : rows.stop - rows.start])
    return np.concatenate(parts, axis=1)


def unstandardised(
    weights: jax.Array, bias: jax.Array, mean: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The same classifiers, float32 [s d c] and [s c], for features as they were given."""
    weights = scale[None, :, None] * np.asarray(weights)
    shift = np.einsum('d,sdc->sc', mean.astype(np.float64), weights)
    return weights, (np.asarray(bias) - shift).astype(np.float32)


@jax.jit
def _ranks(x, y, weights, bias):
    def of_one(weights, bias):
        return ranks(jnp.matmul(x, weights, precision=jax.lax.Precision.HIGHEST) + bias[None], y)

    return jax.vmap(of_one)(weights, bias)
