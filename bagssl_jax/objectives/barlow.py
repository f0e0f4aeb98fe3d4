"""Barlow Twins: redundancy reduction (Zbontar, Jing, Misra, LeCun and Deny, arXiv 2103.03230)."""

import jax
import jax.numpy as jnp
import numpy as np

from bagssl_jax.parallel import axis_size, mean_over, sum_over


def barlow(
    z: jax.Array,
    *,
    off_diagonal_weight: float = 0.0051,
    axis_name: str | None = None,
    key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Drives the cross-correlation of any two patches' projections to the identity.

    With ^z_i [b k] the projections of patch i of every image, standardised over the batch, and
    C_ij = ^z_i^T ^z_j / b,

        loss = mean_{i < j} ( sum_k (1 - C_ij_kk)^2                                   (eqs. 1, 2)
                              + off_diagonal_weight * sum_{k != l} C_ij_kl^2 )

    For two patches that is the authors' code: each branch is standardised by itself, over the
    global batch, with the biased variance and 1e-5 under the root (batch norm without its affine
    part); sums, not means, over the dimensions. The paper's eq. 2 has no 1e-5, and its
    pseudocode the unbiased deviation (C times (b - 1) / b). solo-learn multiplies the whole loss
    by scale_loss (0.025 by default, 0.1 in its CIFAR recipes) and has a default weight of 0.005:
    for its loss scale this one's, or the learning rate where the optimiser is not scale-free.

    The p (p - 1) / 2 matrices [k k] are computed one after another, in the backward pass once
    more, so that one is held at a time. (No sum of [k k] matrices gives their squares at once,
    as it does for the spectral loss; the sum over [b b] Gram matrices does, but needs the global
    batch on every device.)

    Args:
      z: projections [b p k], p >= 2; under shard_map this device's images.
      off_diagonal_weight: lambda of the paper.
      axis_name: mesh axis over which the batch is sharded; None where it is not.
      key: of random draws, of which this objective makes none.

    Returns:
      The loss, float32 [], and its unweighted terms 'on_diagonal' and 'off_diagonal'.
    """
    z = z.astype(jnp.float32)
    images, patches, width = z.shape
    images *= axis_size(axis_name)

    centered = z - mean_over(jnp.mean(z, axis=0, keepdims=True), axis_name)
    variances = mean_over(jnp.mean(centered**2, axis=0, keepdims=True), axis_name)
    standardised = jnp.swapaxes(centered * jax.lax.rsqrt(variances + 1e-5), 0, 1)  # -> [p b k]
    identity = jnp.eye(width)

    def pair_terms(pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        first, second = pair
        products = standardised[first].T @ standardised[second]
        correlations = sum_over(products, axis_name) / images  # [k k]
        on_diagonal = jnp.sum((1 - jnp.diagonal(correlations)) ** 2)
        return on_diagonal, jnp.sum((correlations * (1 - identity)) ** 2)

    pairs = tuple(jnp.asarray(index) for index in np.triu_indices(patches, k=1))
    # Without the checkpoint the backward pass would want the matrices of all pairs.
    terms = jax.lax.map(jax.checkpoint(pair_terms, prevent_cse=False), pairs)
    on_diagonal, off_diagonal = (jnp.mean(term) for term in terms)

    loss = on_diagonal + off_diagonal_weight * off_diagonal
    return loss, {'on_diagonal': on_diagonal, 'off_diagonal': off_diagonal}
