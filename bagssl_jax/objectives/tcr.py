"""TCR, total coding rate, in the form of EMP-SSL (Tong, Chen, Ma and LeCun, arXiv 2304.03977)."""

import jax
import jax.numpy as jnp

from bagssl_jax.objectives.vectors import normalized
from bagssl_jax.parallel import axis_size, mean_over, sum_over


def tcr(
    z: jax.Array,
    *,
    invariance_weight: float = 200.0,
    eps: float = 0.2,
    axis_name: str | None = None,
    key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Pulls the patches of an image to their mean and spreads the images apart.

    With z_i [b k] the L2-normalised projections of patch i of every image and m their mean over
    the bag,

        loss = -invariance_weight * mean_i mean_b cos(z_i, m) - mean_i R(z_i)
        R(z_i) = 1/2 logdet(I + k / (b eps) z_i^T z_i)

    This is the authors' code. Their paper writes eps^2 where the code has eps: for the paper's
    form pass the square. Rate distortion has the plus sign of -R: a larger rate is a more
    spread batch, and a lower loss.

    Args:
      z: projections [b p k], p >= 2; under shard_map this device's images. Normalised here.
      invariance_weight: of the cosine similarity; 200 in the authors' code.
      eps: distortion; 0.2 in the authors' code.
      axis_name: mesh axis over which the batch is sharded; None where it is not.
      key: of random draws, of which this objective makes none.

    Returns:
      The loss, float32 [], and the unweighted terms 'similarity' (in [-1, 1]) and 'coding_rate',
      both better when larger.
    """
    z = normalized(z.astype(jnp.float32))
    images, _, width = z.shape
    images *= axis_size(axis_name)

    bag_mean = normalized(jnp.mean(z, axis=1, keepdims=True))
    cosines = jnp.sum(z * bag_mean, axis=-1)  # [b p k] -> [b p]
    similarity = mean_over(jnp.mean(cosines), axis_name)

    products = sum_over(jnp.einsum('bpk,bpl->pkl', z, z), axis_name)
    identity = jnp.eye(width)[None]
    factor = jnp.linalg.cholesky(identity + (width / (images * eps)) * products)
    # R = logdet / 2, and half of a logdet is the sum of the logarithms of the Cholesky diagonal.
    rates = jnp.sum(jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)), axis=-1)  # [p k] -> [p]
    coding_rate = jnp.mean(rates)

    loss = -invariance_weight * similarity - coding_rate
    return loss, {'similarity': similarity, 'coding_rate': coding_rate}
