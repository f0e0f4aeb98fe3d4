"""The projector g: an MLP from embedding to projection."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bagssl_jax.models.norms import norm_layer


class Projector(nn.Module):
    """Linear layers with BatchNorm and ReLU between them.

    Args:
      widths: output width of each layer; the last one is the projection's, k.
      dtype: of the computation; parameters, statistics and output are float32.
      norm_groups: of BatchNorm, as for `norm_layer`.
    """

    widths: Sequence[int]
    dtype: Any = jnp.float32
    norm_groups: int = 1

    @nn.compact
    def __call__(self, h: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Embedding [n d] -> projection z, float32 [n k], and {'hidden1': [n widths[0]], ...}."""
        norm = norm_layer(train, self.dtype, self.norm_groups)
        x, hidden = h, {}
        for i, width in enumerate(self.widths[:-1], start=1):
            x = nn.Dense(width, use_bias=False, dtype=self.dtype, name=f'dense{i}')(x)
            x = nn.relu(norm(name=f'norm{i}')(x))
            hidden[f'hidden{i}'] = x
        z = nn.Dense(self.widths[-1], dtype=self.dtype, name=f'dense{len(self.widths)}')(x)
        return z.astype(jnp.float32), hidden
