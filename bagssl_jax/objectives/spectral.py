"""The spectral contrastive loss, and the co-occurrence loss: the same but for a constant.

BagSSL (arXiv 2206.08954) reads joint-embedding learning as learning which patches occur
together: the inner product of two patches' projections is to be their co-occurrence
p(x1, x2) / (p(x1) p(x2)). `spectral` is the loss for training on bags; `cooccurrence`,
`spectral_discrete` and `cooccurrence_constant` are exact sums over a known, finite distribution.
"""

import jax
import jax.numpy as jnp

from bagssl_jax.objectives.products import sum_symmetric
from bagssl_jax.objectives.vectors import at_least_float32
from bagssl_jax.parallel import axis_size, sum_over


def spectral(
    z: jax.Array,
    *,
    weight: float = 1.0,
    axis_name: str | None = None,
    key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Patches of one image should agree; of two images, be orthogonal.

    With E_joint over two patches of one image and E_indep over independent draws of two,

        loss = L_S = -E_joint[z1 . z2] + weight / 2 * E_indep[(z1 . z2)^2]

    HaoChen et al. (arXiv 2106.04156) write -2 E_joint[z1 . z2] + E_indep[(z1 . z2)^2]: twice this
    loss at weight 1. The weight sets how long the projections get: z / sqrt(w) has at weight w
    the loss of z at weight 1, divided by w.

    E_joint is the mean over images and ordered pairs of different patches. E_indep is the mean
    over all pairs of patches of *different* images, which makes the batch's loss an unbiased
    estimate; with the images' own pairs it would not be. The authors' code (p = 2) takes of
    these the pairs of patch 1 of one image and patch 2 of another, which estimates the same
    from a half of the pairs. That code also pulls z longer than sqrt(mu) back to that
    length and divides the loss by mu. Here z stays as it is: the identity with the co-occurrence
    loss holds for z that may have any length.

    The sum of squares over all pairs is the squared norm of one [k k] matrix, sum z z^T; no
    matrix of all the pairs, and no gathering.

    Args:
      z: projections [b p k], p >= 2 and b >= 2 over all devices; under shard_map this device's
        images. Not normalised.
      weight: w of the co-occurrence loss; lambda = w / 2.
      axis_name: mesh axis over which the batch is sharded; None where it is not.
      key: of random draws, of which this objective makes none.

    Returns:
      The loss, float32 [], and its unweighted terms 'joint' (better when larger) and
      'independent'.
    """
    z = at_least_float32(z)
    images, patches, _ = z.shape
    images *= axis_size(axis_name)

    within = jnp.einsum('bpk,bqk->bpq', z, z)
    others = 1 - jnp.eye(patches)[None]
    # As a float: of 4,096 images of 20 patches each there are more pairs than an int32 holds.
    pairs = float(images * patches * (patches - 1))
    joint = sum_over(jnp.sum(within * others), axis_name) / pairs

    moment = sum_symmetric(jnp.einsum('bpk,bpl->kl', z, z)[None], axis_name)
    between = jnp.sum(moment**2) - sum_over(jnp.sum(within**2), axis_name)
    independent = between / float(images * (images - 1) * patches**2)

    loss = -joint + weight / 2 * independent
    return loss, {'joint': joint, 'independent': independent}


def cooccurrence(z: jax.Array, joint: jax.Array, *, weight: float = 1.0) -> jax.Array:
    """How far inner products are from the co-occurrence of the things that they embed.

        L_C = E_indep[(w z_i . z_j - p_ij / (p_i p_j))^2] = 2 w L_S + constant

    with L_S as `spectral_discrete` and the constant as `cooccurrence_constant`.

    Args:
      z: one vector a thing, [n k].
      joint: how often things occur together, [n n], not negative; probabilities, or counts,
        which are divided by their sum. p_i and p_j are the sums of its rows and of its columns
        (the same for a symmetric one); a thing that never occurs has no part in it.
      weight: w.

    Returns:
      L_C, float32 [].
    """
    z = at_least_float32(z)
    _, independent, ratio = _distribution(joint)
    return jnp.sum(independent * (weight * (z @ z.T) - ratio) ** 2)


def spectral_discrete(z: jax.Array, joint: jax.Array, *, weight: float = 1.0) -> jax.Array:
    """L_S, as `spectral` has it, summed over a distribution known in full.

        L_S = -sum_ij p_ij z_i . z_j + w / 2 sum_ij p_i p_j (z_i . z_j)^2

    Arguments and result are those of `cooccurrence`.
    """
    z = at_least_float32(z)
    joint, independent, _ = _distribution(joint)
    products = z @ z.T
    return jnp.sum(-joint * products + weight / 2 * independent * products**2)


def cooccurrence_constant(joint: jax.Array) -> jax.Array:
    """What L_C = 2 w L_S + constant adds: sum_ij p_ij^2 / (p_i p_j), float32 []; joint [n n]."""
    joint, _, ratio = _distribution(joint)
    return jnp.sum(joint * ratio)


def _distribution(joint: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """p_ij, p_i p_j, and p_ij / (p_i p_j) or 0 where p_i p_j is; each float32 [n n]."""
    joint = at_least_float32(joint)
    joint = joint / jnp.sum(joint)
    independent = jnp.sum(joint, axis=1, keepdims=True) * jnp.sum(joint, axis=0, keepdims=True)
    occurs = independent > 0
    ratio = jnp.where(occurs, joint / jnp.where(occurs, independent, 1), 0)
    return joint, independent, ratio
