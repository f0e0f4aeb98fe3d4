"""SIGReg: sketched isotropic Gaussian regularisation (Balestriero and LeCun, arXiv 2511.08544)."""

import jax
import jax.numpy as jnp
import numpy as np

from bagssl_jax.objectives.vectors import at_least_float32
from bagssl_jax.parallel import axis_size, mean_over

LARGEST_KNOT, INTERVALS = 3.0, 16


def sigreg(
    z: jax.Array,
    *,
    weight: float = 0.05,
    directions: int = 1024,
    centers: int | None = None,
    axis_name: str | None = None,
    key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """LeJEPA: patches agree, and the projections of each index are normal along every direction.

    With z_i [b k] the projections of patch i of every image, a_d unit vectors drawn anew in every
    step, and phi(t) = exp(-t^2 / 2) the characteristic function of a standard normal number,

        loss = (1 - weight) mean((z - mean over the bag)^2) + weight mean_{i, d} T(z_i . a_d)
        T(x) = b sum_j w_j ((mean cos(t_j x) - phi(t_j))^2 + (mean sin(t_j x))^2)

    T is the statistic of Epps and Pulley, by the trapezoidal rule over [-3, 3] with the window phi:
    t_j = 3 j / 16 for j = 0 to 16 and w_j = 2 (3 / 16) phi(t_j), half of that at both ends. It is
    about 1.05 for standard normal numbers of any b, and grows with b for others: .402 b where all
    projections are equal to 0.

    As in the authors' MINIMAL.md (rbalestr-lab/lejepa), there is no teacher, nothing is normalised,
    and the mean over views, which is the bag's, is what they agree with. There lambda is .02, and
    directions are 256. With global and local views, all agree with the mean of the global ones, to
    which gradients pass too, and T is of all: the paper's algorithm 2, which has local views for
    ViTs alone.

    Devices add up the means of 2 x 16 numbers for each index and direction, and no projections.

    Args:
      z: projections [b p k], p >= 2; under shard_map this device's images.
      weight: lambda, in [0, 1].
      directions: how many.
      centers: the first so many patches of a bag are those whose mean all agree with; None: all.
      axis_name: mesh axis over which the batch is sharded; None where it is not.
      key: of the directions, the same on all devices; None for those of key 0.

    Returns:
      The loss, float32 [], and its unweighted terms 'invariance' and 'normality', the mean T.
    """
    z = at_least_float32(z)
    images = len(z) * axis_size(axis_name)
    from_center = z - jnp.mean(z[:, :centers], axis=1, keepdims=True)
    invariance = mean_over(jnp.mean(from_center**2), axis_name)

    units = unit_vectors(jax.random.key(0) if key is None else key, directions, z.shape[-1])
    along = jnp.einsum('bpk,dk->bpd', z, units.astype(z.dtype))

    def means(knot: jax.Array) -> jax.Array:
        angles = knot * along
        return jnp.stack([jnp.mean(jnp.cos(angles), axis=0), jnp.mean(jnp.sin(angles), axis=0)])

    knots = LARGEST_KNOT / INTERVALS * np.arange(1, INTERVALS + 1)  # at 0 nothing can differ
    phi = np.exp(-(knots**2) / 2)
    weights = 2 * LARGEST_KNOT / INTERVALS * phi
    weights[-1] /= 2
    knots, phi, weights = (jnp.asarray(x, z.dtype) for x in (knots, phi, weights))
    # Without the checkpoint the backward pass would want the angles of all knots.
    found = jax.lax.map(jax.checkpoint(means, prevent_cse=False), knots)  # [j 2 p d]
    cosines, sines = jnp.moveaxis(mean_over(found, axis_name), 1, 0)
    squares = (cosines - phi[:, None, None]) ** 2 + sines**2
    normality = images * jnp.mean(jnp.einsum('j,jpd->pd', weights, squares))

    loss = (1 - weight) * invariance + weight * normality
    return loss, {'invariance': invariance, 'normality': normality}


def unit_vectors(key: jax.Array, count: int, width: int) -> jax.Array:
    """Uniform on the sphere: float32 [count width], whatever the precision of what they measure."""
    drawn = jax.random.normal(key, (count, width), jnp.float32)
    return drawn / jnp.linalg.norm(drawn, axis=1, keepdims=True)
