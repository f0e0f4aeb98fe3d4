"""Layers that encoders share: a convolution that is fast on every backend, and normalisation."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bagssl_jax.parallel import DATA_AXIS

he_normal = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


class Conv(nn.Module):
    """A convolution without bias, padded by `kernel // 2` as in PyTorch's ResNets.

    Args:
      features: output channels.
      kernel: side of the kernel in pixels.
      stride: step in pixels.
      train: whether gradients are wanted; they choose how a CPU computes it.
      dtype: of the computation.
    """

    features: int
    kernel: int
    stride: int
    train: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[n h w c] -> [n ceil(h/stride) ceil(w/stride) features]."""
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        weights = self.param('kernel', he_normal, shape, jnp.float32)
        # On CPUs, the gradients of XLA's convolution are twice as slow as those of a matrix
        # product, but the convolution alone is faster.
        as_product = self.train and jax.default_backend() == 'cpu'
        convolve = _convolve_as_product if as_product else convolve_by_xla
        return convolve(x.astype(self.dtype), weights.astype(self.dtype), self.stride)


def convolve_by_xla(x: jax.Array, weights: jax.Array, stride: int) -> jax.Array:
    """Cross-correlates [n h w c] with [k k c o], padded by k // 2."""
    padding = weights.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        weights,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


def _convolve_as_product(x: jax.Array, weights: jax.Array, stride: int) -> jax.Array:
    kernel, _, channels, features = weights.shape
    if kernel > 3:  # the 7x7 stem would need 49 copies of its input
        return convolve_by_xla(x, weights, stride)
    padding = kernel // 2
    n, height, width, _ = x.shape
    height, width = -(-height // stride), -(-width // stride)
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    shifted = [
        jax.lax.slice(
            x,
            (0, i, j, 0),
            (n, i + (height - 1) * stride + 1, j + (width - 1) * stride + 1, channels),
            (1, stride, stride, 1),
        )
        for i in range(kernel)
        for j in range(kernel)
    ]
    columns = jnp.concatenate(shifted, axis=-1)  # [n h' w' k*k*c]
    return columns @ weights.reshape(-1, features)


def norm_layer(train: bool, dtype: Any) -> Callable[..., nn.BatchNorm]:
    """BatchNorm over the global batch: in training, call it inside shard_map over the data axis.

    Statistics are float32 whatever `dtype` is; momentum and epsilon are PyTorch's defaults.
    """
    return functools.partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        axis_name=DATA_AXIS if train else None,
    )


def scale_pixels(x: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """RGB [n h w 3] in [0, 1] to zero mean and unit deviation by the data's `mean` and `std`."""
    mean, std = (jnp.asarray(v, jnp.float32).reshape(1, 1, 1, -1) for v in (mean, std))
    return (x - mean) / std
