"""Signs of collapse: how far, and along how many directions, a set of vectors is spread."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from bagssl_jax.parallel import mean_over

LEAST_RANK = 0.25  # of the highest so far, below which a representation counts as collapsed


def is_collapsed(found: Mapping[str, float], highest: float) -> bool:
    """Whether a look at the embeddings tells that they have collapsed.

    Args:
      found: 'h_std' and 'h_effective_rank', as of `make_spread_step`.
      highest: effective rank that the training has had.
    """
    rank = found['h_effective_rank']
    return not (0 < found['h_std'] < math.inf and LEAST_RANK * highest <= rank < math.inf)


def spread(x: jax.Array, *, axis_name: str | None = None) -> dict[str, jax.Array]:
    """Standard deviation and effective rank of the rows of `x`.

    The effective rank (Roy and Vetterli, 2007) is exp(entropy) of the singular values of the
    centered rows, divided by their sum: between 1 (all variation along one direction) and d.
    RankMe (arXiv 2210.02885) is the same without centering.

    Args:
      x: float [n d]; under shard_map this device's rows.
      axis_name: mesh axis over which the rows are sharded; None where they are not.

    Returns:
      'std', the mean over the dimensions of their standard deviations, and 'effective_rank',
      0 where nothing varies; float32 [].
    """
    x = x.astype(jnp.float32)
    centered = x - mean_over(jnp.mean(x, axis=0, keepdims=True), axis_name)
    covariance = mean_over(centered.T @ centered / len(x), axis_name)  # [d d]
    std = jnp.mean(jnp.sqrt(jnp.diagonal(covariance)))
    eigenvalues = jnp.linalg.eigvalsh(covariance)
    # Eigenvalues at rounding level are of directions that do not vary.
    floor = eigenvalues[-1:] * x.shape[1] * jnp.finfo(jnp.float32).eps
    singular = jnp.sqrt(jnp.where(eigenvalues > floor, eigenvalues, 0))
    total = jnp.sum(singular)
    share = singular / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
    entropy = -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.maximum(share, 1e-30)), 0))
    return {'std': std, 'effective_rank': jnp.where(total > 0, jnp.exp(entropy), 0)}
