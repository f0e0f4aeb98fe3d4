"""VICReg: variance, invariance and covariance (Bardes, Ponce and LeCun, arXiv 2105.04906)."""

import jax
import jax.numpy as jnp

from bagssl_jax.objectives.products import PRODUCTS, exchanged, smaller_form, sum_symmetric
from bagssl_jax.objectives.vectors import at_least_float32
from bagssl_jax.parallel import axis_size, mean_over, sum_over


def vicreg(
    z: jax.Array,
    *,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
    form: str | None = None,
    axis_name: str | None = None,
    key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """VICReg for any number of patches an image; for two, the authors' code to the letter.

    With z_i [b k] the projections of patch i of every image, and i' != i another patch,

        loss = invariance_weight * mean_{i, i'} mean((z_i - z_i')^2)                  (eq. 5)
             + variance_weight * mean_i mean_k max(0, 1 - sqrt(var_k(z_i) + 1e-4))    (eq. 1)
             + covariance_weight * 2 mean_i sum_{k != l} C(z_i)_kl^2 / K              (eqs. 3, 4)

    Where crops are global and local, that is still all pairs; VICRegL (arXiv 2210.01571), also
    theirs, has those with a global crop in them.

    Variances and covariances have the denominator b - 1. As in the authors' code, and unlike
    the paper's eq. 6, the variance term is the *mean* over the branches, while the covariance
    term is their *sum* at p = 2 (hence the 2 mean_i). For the paper's form double
    `variance_weight`; that is also how solo-learn's weight of 25 reads.

    With ~z_i the projections less their mean over the batch, the sum over k != l is

        |C(z_i)|_F^2 - sum_k var_k(z_i)^2,  |C(z_i)|_F = |~z_i^T ~z_i|_F / (b - 1)
                                                       = |~z_i ~z_i^T|_F / (b - 1)

    The first form takes a [k k] matrix a patch, the second one [b b]: the smaller one is taken.
    Devices add up [k k] matrices of their images or [b b] matrices of their dimensions, the
    second after exchanging projections for these. The difference loses few digits for b < k: of
    |C|_F^2 at most about b / k are on the diagonal where the variances are alike, as C has a rank
    below b.

    Args:
      z: projections [b p k], p >= 2; under shard_map this device's images.
      invariance_weight, variance_weight, covariance_weight: lambda, mu and nu of the paper.
      form: 'covariance' or 'gram', the first or the second form above; None takes the smaller.
      axis_name: mesh axis over which the batch is sharded; None where it is not.
      key: of random draws, of which this objective makes none.

    Returns:
      The loss, float32 [], and its unweighted terms 'invariance', 'variance', 'covariance'.
    """
    z = at_least_float32(z)
    images, patches, width = z.shape
    images *= axis_size(axis_name)

    from_bag = z - jnp.mean(z, axis=1, keepdims=True)
    # The mean over pairs of |z_i - z_i'|^2 is twice the variance within the bag.
    pairs = 2 * jnp.sum(from_bag**2, axis=1) / (patches - 1)  # [b p k] -> [b k]
    invariance = mean_over(jnp.mean(pairs), axis_name)

    batch_mean = mean_over(jnp.mean(z, axis=0, keepdims=True), axis_name)
    centered = z - batch_mean
    form = form or smaller_form(images, width)
    if form == 'gram':
        variances = sum_over(jnp.sum(centered**2, axis=0), axis_name) / (images - 1)
        centered = exchanged(centered, axis_name, axis=2)  # -> [b p k/devices]
    products = jnp.einsum(PRODUCTS[form], centered, centered)
    covariances = sum_symmetric(products, axis_name) / (images - 1)  # [p k k], or Gram [p b b]
    if form == 'covariance':
        variances = jnp.diagonal(covariances, axis1=1, axis2=2)  # [p k]
    variance = jnp.mean(jax.nn.relu(1 - jnp.sqrt(variances + 1e-4)))
    off_diagonal = jnp.sum(covariances**2) - jnp.sum(variances**2)
    covariance = 2 * off_diagonal / (patches * width)

    loss = (
        invariance_weight * invariance + variance_weight * variance + covariance_weight * covariance
    )
    return loss, {'invariance': invariance, 'variance': variance, 'covariance': covariance}
