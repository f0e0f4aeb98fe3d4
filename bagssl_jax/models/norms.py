"""BatchNorm over the global batch, or over groups of its images."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bagssl_jax.parallel import DATA_AXIS, axis_size, mean_over, sum_over

MOMENTUM, EPSILON = 0.9, 1e-5  # PyTorch's defaults


def norm_layer(train: bool, dtype: Any, groups: int = 1) -> Callable[..., nn.Module]:
    """BatchNorm over the global batch: in training, call it inside shard_map over the data axis.

    Statistics are float32 whatever `dtype` is.

    Args:
      train: whether the batch's own statistics are used, and the running ones updated.
      dtype: of the output.
      groups: each of so many equal, consecutive parts of the global batch is normalised by its own
        statistics, and the running ones follow the mean over the groups. Where two views or bags
        must not tell each other of themselves, or sums over all devices take too long. The same on
        any number of devices that divides the groups, or that they divide.
    """
    shared = {'momentum': MOMENTUM, 'epsilon': EPSILON, 'dtype': dtype}
    if groups > 1:
        return functools.partial(_GroupedBatchNorm, train=train, groups=groups, **shared)
    axis_name = DATA_AXIS if train else None
    return functools.partial(
        nn.BatchNorm, use_running_average=not train, axis_name=axis_name, **shared
    )


class _GroupedBatchNorm(nn.Module):
    """`nn.BatchNorm`, with its variables, but for the statistics of a batch in training."""

    train: bool
    groups: int
    momentum: float
    epsilon: float
    dtype: Any
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[n ... c] -> the same shape; this device's rows under shard_map."""
        shape = x.shape[-1:]
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, shape, jnp.float32)
        running_var = self.variable('batch_stats', 'var', jnp.ones, shape, jnp.float32)
        scale = self.param('scale', self.scale_init, shape, jnp.float32)
        bias = jnp.zeros(shape)
        if self.use_bias:
            bias = self.param('bias', nn.initializers.zeros, shape, jnp.float32)
        if not self.train:
            mean, var = running_mean.value[None], running_var.value[None]
        else:
            mean, var = self._group_statistics(x)
            for running, own in ((running_mean, mean), (running_var, var)):
                batch = mean_over(own.mean(axis=0), DATA_AXIS)
                running.value = self.momentum * running.value + (1 - self.momentum) * batch
        # [n ... c] -> [l n/l ... c], for the l groups that this device has a part of
        grouped = x.reshape(len(mean), -1, *x.shape[1:])
        inner = [1] * (x.ndim - 1)
        mean, var = (s.reshape(len(s), *inner, -1) for s in (mean, var))
        scale, bias = (s.reshape(1, *inner, -1) for s in (scale, bias))
        factor = jax.lax.rsqrt(var + self.epsilon) * scale
        y = (grouped.astype(jnp.float32) - mean) * factor + bias
        return y.reshape(x.shape).astype(self.dtype)

    def _group_statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Means and biased variances of the groups that rows of this device are of: [l c] each."""
        devices = axis_size(DATA_AXIS)
        local = max(1, self.groups // devices)
        rows = x.astype(jnp.float32).reshape(local, -1, x.shape[-1])  # [l m c]
        own = jnp.stack([rows.mean(axis=1), jnp.square(rows).mean(axis=1)], axis=1)  # [l 2 c]
        if devices > self.groups:
            # Sums over some of the devices, as a sum over all, in which each group has a place.
            place = jax.lax.axis_index(DATA_AXIS) * self.groups // devices
            sums = jnp.zeros((self.groups, *own.shape[1:]), jnp.float32).at[place].set(own[0])
            sums = sum_over(sums, DATA_AXIS)
            own = jax.lax.dynamic_slice_in_dim(sums, place, 1) * (self.groups / devices)
        mean, squares = own[:, 0], own[:, 1]
        return mean, jnp.maximum(squares - mean**2, 0)
