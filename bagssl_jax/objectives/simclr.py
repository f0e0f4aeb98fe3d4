"""SimCLR's NT-Xent loss (Chen, Kornblith, Norouzi and Hinton, arXiv 2002.05709)."""

import jax
import jax.numpy as jnp

from bagssl_jax.objectives.vectors import at_least_float32, normalized
from bagssl_jax.parallel import mean_over


def simclr(
    z: jax.Array,
    *,
    temperature: float = 0.5,
    weight: float = 1.0,
    axis_name: str | None = None,
    key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Tells each patch's partners of the same image from the patches of all other images.

    With s the cosine similarity, i the anchor, j != i another patch of its image (the positive)
    and n running over all patches of all *other* images (the negatives),

        loss = weight mean_{i, j} -log(e^(s_ij / T) / (e^(s_ij / T) + sum_n e^(s_in / T)))  (eq. 1)

    For two patches that is NT-Xent, averaged over the 2b anchors. For more, every pair (i, j) is
    a term of its own, and an anchor's other positives are not in its denominator. SupCon's
    L_out (arXiv 2004.11362, eq. 2) is the same mean of pairs but keeps them there, so that it
    never falls below log(p - 1), and an image's patches compete. For p = 2 the two are equal.

    Devices hold the similarities of their own anchors, [b/devices p b p], and all of z.

    Args:
      z: projections [b p k], p >= 2; under shard_map this device's images. Normalised here.
      temperature: T; 0.5 is the paper's for CIFAR-10, 0.1 for ImageNet.
      weight: 1 is the paper's mean over the anchors; 2 that of the authors' code
        (tf2/objective.py), which adds the means of the two views.
      axis_name: mesh axis over which the batch is sharded; None where it is not.
      key: of random draws, of which this objective makes none.

    Returns:
      The loss, float32 [], and 'similarity', the mean s_ij of the positives, in [-1, 1] and
      better when larger.
    """
    z = normalized(at_least_float32(z))
    images = len(z)
    everyone = _gathered(z, axis_name)
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * images

    logits = jnp.einsum('ipk,jqk->ipjq', z, everyone) / temperature
    own = (first + jnp.arange(images))[:, None] == jnp.arange(len(everyone))[None]  # [i j]
    # Not -inf: a row that holds nothing else (a batch of one image) would have the gradient NaN.
    lowest = jnp.finfo(jnp.float32).min
    negatives = jnp.where(own[:, None, :, None], lowest, logits)
    negatives = jax.nn.logsumexp(negatives, axis=(2, 3))  # [i p j q] -> [i p]

    positives = jnp.einsum('ipk,iqk->ipq', z, z)
    # -log(e^a / (e^a + e^n)) = softplus(n - a), exact also where it is almost nothing.
    pairs = jax.nn.softplus(negatives[..., None] - positives / temperature)
    loss = weight * mean_over(_mean_of_pairs(pairs), axis_name)
    return loss, {'similarity': mean_over(_mean_of_pairs(positives), axis_name)}


def _gathered(z: jax.Array, axis_name: str | None) -> jax.Array:
    """The images of all devices, in the order of the global batch."""
    return z if axis_name is None else jax.lax.all_gather(z, axis_name, tiled=True)


def _mean_of_pairs(x: jax.Array) -> jax.Array:
    """Mean of x [b p p] off the diagonals."""
    patches = x.shape[-1]
    others = 1 - jnp.eye(patches)[None]
    return jnp.sum(x * others) / (len(x) * patches * (patches - 1))
