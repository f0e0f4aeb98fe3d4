"""Layers that encoders share."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from bagssl_jax.models.convolution import convolve

he_normal = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
# What nn.Linear and nn.Conv2d give their kernels: uniform within 1 / sqrt(fan_in).
torch_uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
# What Haiku gives them: normal, cut off at two deviations of 1 / sqrt(fan_in), which leaves .88.
haiku_normal = nn.initializers.variance_scaling(0.87962566**2, 'fan_in', 'truncated_normal')


class Conv(nn.Module):
    """A convolution without bias, padded by `kernel // 2` as in PyTorch's ResNets.

    Args:
      features: output channels.
      kernel: side of the kernel in pixels.
      stride: step in pixels.
      dtype: of the computation.
      initializer: of the kernel.
    """

    features: int
    kernel: int
    stride: int
    dtype: Any = jnp.float32
    initializer: nn.initializers.Initializer = he_normal

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[n h w c] -> [n ceil(h/stride) ceil(w/stride) features]."""
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        weights = self.param('kernel', self.initializer, shape, jnp.float32)
        y = convolve(x.astype(self.dtype), weights.astype(self.dtype), self.stride)
        return checkpoint_name(y, 'convolution')


def torch_bias(inputs: int) -> nn.initializers.Initializer:
    """What nn.Linear and nn.Conv2d give their biases: uniform within 1 / sqrt(inputs)."""
    limit = inputs**-0.5
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -limit, limit)


def scale_pixels(x: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """RGB [n h w 3] in [0, 1] to zero mean and unit deviation by the data's `mean` and `std`."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    mean, std = (jnp.asarray(v, dtype).reshape(1, 1, 1, -1) for v in (mean, std))
    return (x - mean) / std


def mean_over_places(x: jax.Array) -> jax.Array:
    """Mean over the places, in float32 also where `x` is coarser."""
    finer = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.mean(x.astype(finer), axis=(1, 2))  # [n h w d] -> [n d]
