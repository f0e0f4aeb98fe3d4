"""TCR, total coding rate, in the form of EMP-SSL (Tong, Chen, Ma and LeCun, arXiv 2304.03977)."""

import jax
import jax.numpy as jnp

from bagssl_jax.objectives.products import (
    PRODUCTS,
    exchanged,
    scatter_symmetric,
    smaller_form,
    sum_symmetric,
)
from bagssl_jax.objectives.vectors import at_least_float32, normalized
from bagssl_jax.parallel import axis_size, mean_over, sum_over


def tcr(
    z: jax.Array,
    *,
    invariance_weight: float = 200.0,
    eps: float = 0.2,
    form: str | None = None,
    axis_name: str | None = None,
    key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Pulls the patches of an image to their mean and spreads the images apart.

    With z_i [b k] the L2-normalised projections of patch i of every image and m their mean over
    the bag,

        loss = -invariance_weight * mean_i mean_b cos(z_i, m) - mean_i R(z_i)
        R(z_i) = 1/2 logdet(I + k / (b eps) z_i^T z_i) = 1/2 logdet(I + k / (b eps) z_i z_i^T)

    This is the authors' code. Their paper writes eps^2 where the code has eps: for the paper's
    form pass the square. Rate distortion has the plus sign of -R: a larger rate is a more
    spread batch, and a lower loss.

    The first form of R factors a [k k] matrix a patch, the second one [b b]: the smaller one is
    taken. The p factorisations are divided among the devices: each gets all images' projections
    of its patches or, where these are more, the sums of products (`sends_projections`).

    Args:
      z: projections [b p k], p >= 2; under shard_map this device's images. Normalised here.
      invariance_weight: of the cosine similarity; 200 in the authors' code.
      eps: distortion; 0.2 in the authors' code.
      form: 'covariance' or 'gram', the first or the second form of R; None takes the smaller.
      axis_name: mesh axis over which the batch is sharded; None where it is not.
      key: of random draws, of which this objective makes none.

    Returns:
      The loss, float32 [], and the unweighted terms 'similarity' (in [-1, 1]) and 'coding_rate',
      both better when larger.
    """
    z = normalized(at_least_float32(z))
    images, _, width = z.shape
    images *= axis_size(axis_name)

    bag_mean = normalized(jnp.mean(z, axis=1, keepdims=True))
    cosines = jnp.sum(z * bag_mean, axis=-1)  # [b p k] -> [b p]
    similarity = mean_over(jnp.mean(cosines), axis_name)

    scale = width / (images * eps)
    coding_rate = _coding_rate(z, scale, form or smaller_form(images, width), axis_name)

    loss = -invariance_weight * similarity - coding_rate
    return loss, {'similarity': similarity, 'coding_rate': coding_rate}


def sends_projections(images: int, patches: int, width: int, devices: int) -> bool:
    """Whether devices send less by exchanging projections than by summing [k k] products.

    Both are sent once forward and once backward. In floats, with P the patches filled up to a
    multiple of the devices: b/devices P k projections; or P k^2 / 2 products, halves of symmetric
    matrices, of which each device receives the sums for P/devices patches. Where there are more
    devices than patches that is p k^2 / 2, since all devices receive, and factor, all p.

    Args:
      images: b, of the global batch.
      patches, width: p and k.
      devices: that share the batch.
    """
    filled = patches + -patches % devices
    products = filled if devices <= patches else patches
    return images / devices * filled <= products * width / 2


def _coding_rate(z: jax.Array, scale: float, form: str, axis_name: str | None) -> jax.Array:
    """mean_i 1/2 logdet(I + scale z_i^T z_i) of this device's z [b/devices p k], over all."""
    images, patches, width = z.shape
    devices = axis_size(axis_name)
    equation = PRODUCTS[form]
    if form == 'gram' or sends_projections(images * devices, patches, width, devices):
        own = exchanged(z, axis_name, axis=1)  # [b/devices p k] -> [b p/devices k]
        rates = sum_over(_rates(scale * jnp.einsum(equation, own, own)), axis_name)
        return rates / patches
    products = scale * jnp.einsum(equation, z, z)
    if devices <= patches:
        return sum_over(_rates(scatter_symmetric(products, axis_name)), axis_name) / patches
    # All devices factor the same: zeros up to one matrix a device would be more to send.
    return _rates(sum_symmetric(products, axis_name)) / patches


def _rates(products: jax.Array) -> jax.Array:
    """The sum of 1/2 logdet(I + products) over [p n n]; of zeros it is 0."""
    identity = jnp.eye(products.shape[-1])[None]
    factor = jnp.linalg.cholesky(identity + products)
    # Half of a logdet is the sum of the logarithms of the Cholesky diagonal.
    rates = jnp.sum(jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)), axis=-1)  # [p n] -> [p]
    return jnp.sum(rates)
