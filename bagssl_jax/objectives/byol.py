"""BYOL: Bootstrap your own latent (Grill et al., arXiv 2006.07733)."""

import jax
import jax.numpy as jnp

from bagssl_jax.objectives.vectors import at_least_float32, normalized
from bagssl_jax.parallel import mean_over


def byol(
    prediction: jax.Array,
    target: jax.Array,
    *,
    axis_name: str | None = None,
    key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Predicts, from each patch, what a momentum network makes of the other patches.

    With q_i the prediction from patch i and z'_j the momentum network's projection of patch j,

        loss = 2 mean_{i != j} mean_b |q_i/|q_i| - z'_j/|z'_j||^2
             = 2 mean_{i != j} mean_b (2 - 2 cos(q_i, z'_j))                         (eqs. 2, 3)

    The 2 makes the case of two patches the paper's and the authors' code's: the *sum* of both
    directions, in [0, 8]. For any p it is 4 - 4 mean cos; the mean of negative cosines that
    SimSiam has is loss / 4 - 1.

    Nothing here keeps images apart: a constant prediction of a constant target is a minimum,
    which BYOL's predictor and moving target avoid in practice. No gradient enters the target.

    Args:
      prediction: the online network's predictor's output, q [b p k], p >= 2; under shard_map
        this device's images. Normalised here.
      target: the momentum network's projection, z' [b g k], of the same patches, or of the first g
        of them, such as the global crops of a multi-crop: j then runs over these, as in DINO
        (arXiv 2104.14294) and in solo-learn's BYOL. Normalised here.
      axis_name: mesh axis over which the batch is sharded; None where it is not.
      key: of random draws, of which this objective makes none.

    Returns:
      The loss, float32 [], and 'similarity', the mean cosine, in [-1, 1] and better when larger.
    """
    prediction = normalized(at_least_float32(prediction))
    target = jax.lax.stop_gradient(normalized(at_least_float32(target)))
    patches, targets = prediction.shape[1], target.shape[1]
    # The cosines of q_i with all z'_j, j != i, add up to its product with their sum: g (p - 1)
    # of them over i < p.
    own = jnp.pad(target, ((0, 0), (0, patches - targets), (0, 0)))  # [b g k] -> [b p k]
    others = (jnp.sum(target, axis=1, keepdims=True) - own) / ((patches - 1) * targets / patches)
    cosines = jnp.sum(prediction * others, axis=-1)  # [b p k] -> [b p]
    similarity = mean_over(jnp.mean(cosines), axis_name)
    return 4 - 4 * similarity, {'similarity': similarity}
