"""The projector g: an MLP from embedding to projection."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bagssl_jax.models.layers import haiku_normal, torch_bias, torch_uniform
from bagssl_jax.models.norms import norm_layer


class Projector(nn.Module):
    """Linear layers with BatchNorm and ReLU between them.

    Args:
      widths: output width of each layer; the last one is the projection's, k.
      dtype: of the computation; parameters, statistics and output are float32.
      norm_groups: of BatchNorm, as for `norm_layer`.
      initializer: of the layers, one of `INITS`.
      last_bias: whether the last layer has a bias; the others have BatchNorm's.
      last_norm: whether BatchNorm, with a scale but without a bias, comes behind the last layer.
    """

    widths: Sequence[int]
    dtype: Any = jnp.float32
    norm_groups: int = 1
    initializer: str = 'lecun_normal'
    last_bias: bool = True
    last_norm: bool = False

    @nn.compact
    def __call__(self, h: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Embedding [n d] -> projection z, float32 [n k], and {'hidden1': [n widths[0]], ...}."""
        norm = norm_layer(train, self.dtype, self.norm_groups)
        kernel_init, bias_init = INITS[self.initializer]
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=kernel_init)
        x, hidden = h, {}
        for i, width in enumerate(self.widths[:-1], start=1):
            x = dense(width, use_bias=False, name=f'dense{i}')(x)
            x = nn.relu(norm(name=f'norm{i}')(x))
            hidden[f'hidden{i}'] = x
        z = dense(
            self.widths[-1],
            use_bias=self.last_bias,
            bias_init=bias_init(x.shape[-1]),
            name=f'dense{len(self.widths)}',
        )(x)
        if self.last_norm:
            z = norm(name=f'norm{len(self.widths)}', use_bias=False)(z)
        return z.astype(jnp.promote_types(z.dtype, jnp.float32)), hidden


# Of the kernels, and, given the number of inputs, of the bias.
INITS = {
    'lecun_normal': (nn.initializers.lecun_normal(), lambda inputs: nn.initializers.zeros),
    'torch': (torch_uniform, torch_bias),
    'normal': (nn.initializers.normal(0.01), lambda inputs: nn.initializers.zeros),
    'haiku': (haiku_normal, lambda inputs: nn.initializers.zeros),
}
