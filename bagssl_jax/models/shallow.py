"""A shallow encoder behind a whitening layer, for trainings of minutes."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bagssl_jax.errors import check_known
from bagssl_jax.models.convolution import convolve
from bagssl_jax.models.layers import Conv, mean_over_places, scale_pixels
from bagssl_jax.models.norms import norm_layer

KERNEL = 3  # side in pixels of what is whitened
POOLS = ('last', 'stages')
EPSILON = 1e-2  # added to the variance of pixels that have `mean` and `std` taken out


class Shallow(nn.Module):
    """A fixed whitening layer, then three 3x3 convolutions of stride 2.

    The first layer is that of hlb-CIFAR10 and airbench (Jordan, arXiv 2404.00498, section 3.2):
    the principal components of 3x3 pixels of training images, each at variance 1, and their
    negatives, which ReLU keeps apart. It has no parameters and needs no backward pass, where
    images are largest. Its kernel is the variable whitening/kernel of 'batch_stats', which no step
    changes: at random first, until `with_whitening` sets it.

    Args:
      width: channels of the first stage; those after it have two and four times as many.
      pool: what the embedding is: the mean over places of the 'last' stage, or of all three
        'stages', one behind the other, as early ones have what late ones have dropped.
      dtype, mean, std, norm_groups: as in `resnet.ResNet`.
    """

    width: int
    pool: str = 'last'
    dtype: Any = jnp.float32
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    norm_groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """RGB [n h w 3] in [0, 1] -> embedding h, float32 [n 4*width], and {'map': ...}.

        With pool='stages', h is 7*width wide.
        """
        norm = norm_layer(train, self.dtype, self.norm_groups)
        x = scale_pixels(x, self.mean, self.std).astype(self.dtype)
        x = _Whitening(self.dtype, name='whitening')(x)
        x = nn.relu(jnp.concatenate([x, -x], axis=-1))
        maps = []
        for stage in range(3):
            width = self.width * 2**stage
            x = Conv(width, 3, 2, self.dtype, name=f'stage{stage + 1}_conv')(x)
            x = nn.relu(norm(name=f'stage{stage + 1}_norm')(x))
            maps.append(x)
        if self.pool == 'last':
            return mean_over_places(x), {'map': x}
        return jnp.concatenate([mean_over_places(y) for y in maps], axis=-1), {'map': x}


def shallow(
    *, width: int, pool: str, dtype: Any, mean: tuple[float, ...], std: tuple[float, ...]
) -> Shallow:
    """A `Shallow` as its group in a configuration describes it.

    Raises:
      InputError: an unknown pool.
    """
    check_known('encoder.pool', pool, POOLS)
    return Shallow(width=width, pool=pool, dtype=dtype, mean=mean, std=std)


def whitening_kernel(
    patches: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]
) -> np.ndarray:
    """What makes of 3x3 pixels their principal components, each of variance 1.

    Args:
      patches: of training images, uint8 [n h w 3].
      mean, std: as the encoder takes them out of pixels in [0, 1].

    Returns:
      float32 [3 3 3 27], components by falling variance. Those of little variance stay below
      variance 1, as `EPSILON` is added to it. The largest entry of each is positive.
    """
    pixels = (patches.astype(np.float64) / 255 - np.array(mean)) / np.array(std)
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (KERNEL, KERNEL), axis=(1, 2))
    rows = np.moveaxis(windows, 3, -1).reshape(-1, KERNEL * KERNEL * 3)  # [n' k*k*3]
    centred = rows - rows.mean(axis=0)
    variances, vectors = np.linalg.eigh(centred.T @ centred / len(rows))
    variances, vectors = variances[::-1], vectors[:, ::-1]
    largest = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.sign(vectors[largest, np.arange(len(largest))])
    kernel = vectors / np.sqrt(np.maximum(variances, 0) + EPSILON)
    return kernel.reshape(KERNEL, KERNEL, 3, -1).astype(np.float32)


def with_whitening(variables: Mapping[str, Any], kernel: Any) -> dict[str, Any]:
    """The variables of a `Shallow`, {'params', 'batch_stats'}, with this whitening kernel."""
    stats = {**variables['batch_stats'], 'whitening': {'kernel': kernel}}
    return {**variables, 'batch_stats': stats}


class _Whitening(nn.Module):
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[n h w 3] -> [n h w 27]."""
        shape = (KERNEL, KERNEL, 3, KERNEL * KERNEL * 3)
        kernel = self.variable(
            'batch_stats',
            'kernel',
            lambda: nn.initializers.lecun_normal()(self.make_rng('params'), shape),
        ).value
        return convolve(x, kernel.astype(self.dtype), 1)
