"""Barlow Twins: redundancy reduction (Zbontar, Jing, Misra, LeCun and Deny, arXiv 2103.03230)."""

import jax
import jax.numpy as jnp
import numpy as np

from bagssl_jax.objectives.products import PRODUCTS, exchanged, sum_symmetric
from bagssl_jax.objectives.vectors import at_least_float32
from bagssl_jax.parallel import axis_size, mean_over, sum_over


def barlow(
    z: jax.Array,
    *,
    off_diagonal_weight: float = 0.0051,
    form: str | None = None,
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

    The sum over k != l is |C_ij|_F^2 - sum_k C_ij_kk^2, and

        |C_ij|_F^2 = <^z_i ^z_i^T, ^z_j ^z_j^T>_F / b^2

    so that there are two forms: 'covariance' computes the p (p - 1) / 2 matrices C_ij [k k], one
    after another and in the backward pass once more, so that one is held at a time; 'gram' p
    matrices [b b], which serve all pairs, and the diagonals by themselves (`cheaper_form`).
    Devices add up the C_ij of their images, or the [b b] matrices of their dimensions, which
    they exchange projections for. The difference loses few digits for b < k: of |C_ij|_F^2 at
    most about b / k are on the diagonal where its elements are alike, as C_ij has a rank below b.

    Args:
      z: projections [b p k], p >= 2; under shard_map this device's images.
      off_diagonal_weight: lambda of the paper.
      form: 'covariance' or 'gram'; None takes the cheaper.
      axis_name: mesh axis over which the batch is sharded; None where it is not.
      key: of random draws, of which this objective makes none.

    Returns:
      The loss, float32 [], and its unweighted terms 'on_diagonal' and 'off_diagonal'.
    """
    z = at_least_float32(z)
    images, patches, width = z.shape
    images *= axis_size(axis_name)

    centered = z - mean_over(jnp.mean(z, axis=0, keepdims=True), axis_name)
    variances = mean_over(jnp.mean(centered**2, axis=0, keepdims=True), axis_name)
    standardised = centered * jax.lax.rsqrt(variances + 1e-5)
    terms = {
        'covariance': _terms_of_pairs,
        'gram': _terms_of_grams,
    }[form or cheaper_form(images, patches, width)]
    on_diagonal, off_diagonal = terms(standardised, images, axis_name)

    loss = on_diagonal + off_diagonal_weight * off_diagonal
    return loss, {'on_diagonal': on_diagonal, 'off_diagonal': off_diagonal}


def cheaper_form(images: int, patches: int, width: int) -> str:
    """'gram' where it takes fewer operations and no larger matrices, otherwise 'covariance'.

    p products of 2 b^2 k operations against p (p - 1) / 2 of 2 b k^2. Since 'gram' holds all p
    matrices at once, the p for which it saves operations at b > k have to do without.

    Args:
      images: b, of the global batch.
      patches, width: p and k.
    """
    return 'gram' if images < width and 2 * images < (patches - 1) * width else 'covariance'


def _terms_of_pairs(
    standardised: jax.Array, images: int, axis_name: str | None
) -> tuple[jax.Array, jax.Array]:
    """Both terms of this device's [b/devices p k], by the matrix [k k] of every pair."""
    _, patches, width = standardised.shape
    standardised = jnp.swapaxes(standardised, 0, 1)  # -> [p b k]
    identity = jnp.eye(width)

    def pair_terms(pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        first, second = pair
        products = standardised[first].T @ standardised[second]
        correlations = sum_over(products, axis_name) / images  # [k k]
        on_diagonal = jnp.sum((1 - jnp.diagonal(correlations)) ** 2)
        return on_diagonal, jnp.sum((correlations * (1 - identity)) ** 2)

    pairs = tuple(jnp.asarray(index) for index in np.triu_indices(patches, k=1))
    # Without the checkpoint the backward pass would want the matrices of all pairs.
    on_diagonal, off_diagonal = jax.lax.map(jax.checkpoint(pair_terms, prevent_cse=False), pairs)
    return jnp.mean(on_diagonal), jnp.mean(off_diagonal)


def _terms_of_grams(
    standardised: jax.Array, images: int, axis_name: str | None
) -> tuple[jax.Array, jax.Array]:
    """Both terms of this device's [b/devices p k], by the matrix [b b] of every patch."""
    _, patches, width = standardised.shape
    x = exchanged(standardised, axis_name, axis=2)  # [b/devices p k] -> [b p k/devices]
    grams = sum_symmetric(jnp.einsum(PRODUCTS['gram'], x, x), axis_name) / images
    squares = jnp.einsum('pbc,qbc->pq', grams, grams)  # |C_ij|_F^2

    diagonals = jnp.einsum('bpk,bqk->pqk', x, x) / images
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * x.shape[-1]
    dimensions = first + jnp.arange(x.shape[-1])[None, None]
    errors = jnp.where(dimensions < width, 1 - diagonals, 0)  # and not the zeros that fill up
    on_diagonal, on_squares = (
        sum_over(jnp.sum(x**2, axis=-1), axis_name) for x in (errors, diagonals)
    )  # [p p]

    pairs = jnp.triu(jnp.ones((patches, patches)), 1)
    pairs /= jnp.sum(pairs)
    return jnp.sum(pairs * on_diagonal), jnp.sum(pairs * (squares - on_squares))
