"""Residual networks (He et al., arXiv 1512.03385), and a small plain one for CPUs."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bagssl_jax.errors import check_known
from bagssl_jax.models.layers import (
    Conv,
    haiku_normal,
    he_normal,
    mean_over_places,
    scale_pixels,
    torch_uniform,
)
from bagssl_jax.models.norms import norm_layer

HALF = (0.5, 0.5, 0.5)
# What a block keeps for its backward pass beside its input; the rest is computed again.
REMAT = {
    'none': None,
    'norms': jax.checkpoint_policies.save_only_these_names('convolution'),
    'blocks': jax.checkpoint_policies.nothing_saveable,
}
STEMS = ('cifar', 'imagenet', 'cifar_pad2')
CONV_INITS = {
    'he_normal': he_normal,
    'torch': torch_uniform,
    'lecun_normal': nn.initializers.lecun_normal(),
    'haiku': haiku_normal,
}


class ResNet(nn.Module):
    """ResNet, version 1.5: the stride is on the 3x3 convolution of a bottleneck.

    Args:
      stages: blocks in each of the four stages.
      bottleneck: 1x1-3x3-1x1 blocks, four times as wide at their output, instead of 3x3-3x3.
      width: channels of the stem and of the first stage; 64 in the paper.
      stem: 'cifar' (3x3, stride 1), 'imagenet' (7x7, stride 2, and 3x3 max-pooling), or
        'cifar_pad2' (3x3, stride 1, padded by 2 as in solo-learn).
      stem_init: of the stem's kernel: one of `CONV_INITS`, 'he_normal' as torchvision's; 'torch'
        (`layers.torch_uniform`) as of an nn.Conv2d that took its place.
      conv_init: of all other kernels, likewise.
      zero_init_last: start the last BatchNorm scale of every block at zero, so that the block
        starts as the identity (Goyal et al., arXiv 1706.02677).
      dtype: of the computation; parameters, statistics and output are float32.
      mean, std: of the pixels, by channel, in [0, 1].
      remat: what the backward pass computes again instead of keeping it: 'none', 'norms' (inside
        blocks all but the convolutions' outputs) or 'blocks' (inside blocks everything).
      norm_groups: of BatchNorm, as for `norm_layer`.
    """

    stages: Sequence[int]
    bottleneck: bool = False
    width: int = 64
    stem: str = 'cifar'
    stem_init: str = 'he_normal'
    conv_init: str = 'he_normal'
    zero_init_last: bool = False
    dtype: Any = jnp.float32
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF
    remat: str = 'none'
    norm_groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """RGB [n h w 3] in [0, 1] -> embedding h, float32 [n d], and {'map': [n h' w' d]}."""
        norm = norm_layer(train, self.dtype, self.norm_groups)
        x = scale_pixels(x, self.mean, self.std)
        if self.stem == 'cifar_pad2':
            x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # the convolution pads by 1 itself
        kernel, stride = (7, 2) if self.stem == 'imagenet' else (3, 1)
        init = CONV_INITS[self.stem_init]
        x = Conv(self.width, kernel, stride, self.dtype, init, name='stem_conv')(x)
        x = nn.relu(norm(name='stem_norm')(x))
        if self.stem == 'imagenet':
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        block = _Bottleneck if self.bottleneck else _BasicBlock
        if self.remat != 'none':
            policy = REMAT[self.remat]
            block = nn.remat(block, policy=policy, static_argnums=(2,))  # train, after self and x
        for stage, blocks in enumerate(self.stages):
            for i in range(blocks):
                x = block(
                    width=self.width * 2**stage,
                    stride=2 if stage > 0 and i == 0 else 1,
                    zero_init_last=self.zero_init_last,
                    dtype=self.dtype,
                    norm_groups=self.norm_groups,
                    init=CONV_INITS[self.conv_init],
                    name=f'stage{stage + 1}_block{i + 1}',
                )(x, train)
        return mean_over_places(x), {'map': x}


class Tiny(nn.Module):
    """Four 3x3 convolutions, the last three of stride 2: an encoder to train on a CPU.

    Args:
      width: channels of the first convolution; the embedding is eight times as wide.
      dtype, mean, std, norm_groups: as in ResNet.
    """

    width: int = 16
    dtype: Any = jnp.float32
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF
    norm_groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """RGB [n h w 3] in [0, 1] -> embedding h, float32 [n 8*width], and {'map': ...}."""
        norm = norm_layer(train, self.dtype, self.norm_groups)
        x = scale_pixels(x, self.mean, self.std)
        for i in range(4):
            stride = 1 if i == 0 else 2
            x = Conv(self.width * 2**i, 3, stride, self.dtype, name=f'conv{i + 1}')(x)
            x = nn.relu(norm(name=f'norm{i + 1}')(x))
        return mean_over_places(x), {'map': x}


def resnet(
    stages: tuple[int, ...],
    *,
    bottleneck: bool = False,
    width: int,
    stem: str,
    stem_init: str = 'he_normal',
    conv_init: str = 'he_normal',
    zero_init_last: bool,
    remat: str = 'none',
    dtype: Any,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> ResNet:
    """A ResNet as its group in a configuration describes it; arguments as for `ResNet`.

    Raises:
      InputError: an unknown stem, stem_init, conv_init or remat.
    """
    check_known('encoder.stem', stem, STEMS)
    check_known('encoder.stem_init', stem_init, CONV_INITS)
    check_known('encoder.conv_init', conv_init, CONV_INITS)
    check_known('encoder.remat', remat, REMAT)
    return ResNet(
        stages=stages,
        bottleneck=bottleneck,
        width=width,
        stem=stem,
        stem_init=stem_init,
        conv_init=conv_init,
        zero_init_last=zero_init_last,
        remat=remat,
        dtype=dtype,
        mean=mean,
        std=std,
    )


def tiny(*, width: int, dtype: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> Tiny:
    """A `Tiny` as its group in a configuration describes it."""
    return Tiny(width=width, dtype=dtype, mean=mean, std=std)


class _BasicBlock(nn.Module):
    width: int
    stride: int
    zero_init_last: bool
    dtype: Any
    norm_groups: int
    init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = norm_layer(train, self.dtype, self.norm_groups)
        y = Conv(self.width, 3, self.stride, self.dtype, self.init, name='conv1')(x)
        y = nn.relu(norm(name='norm1')(y))
        y = Conv(self.width, 3, 1, self.dtype, self.init, name='conv2')(y)
        y = norm(name='norm2', scale_init=_last_scale(self.zero_init_last))(y)
        if x.shape != y.shape:
            x = Conv(self.width, 1, self.stride, self.dtype, self.init, name='shortcut_conv')(x)
            x = norm(name='shortcut_norm')(x)
        return nn.relu(x + y)


class _Bottleneck(nn.Module):
    width: int
    stride: int
    zero_init_last: bool
    dtype: Any
    norm_groups: int
    init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = norm_layer(train, self.dtype, self.norm_groups)
        y = Conv(self.width, 1, 1, self.dtype, self.init, name='conv1')(x)
        y = nn.relu(norm(name='norm1')(y))
        y = Conv(self.width, 3, self.stride, self.dtype, self.init, name='conv2')(y)
        y = nn.relu(norm(name='norm2')(y))
        y = Conv(4 * self.width, 1, 1, self.dtype, self.init, name='conv3')(y)
        y = norm(name='norm3', scale_init=_last_scale(self.zero_init_last))(y)
        if x.shape != y.shape:
            x = Conv(4 * self.width, 1, self.stride, self.dtype, self.init, name='shortcut_conv')(x)
            x = norm(name='shortcut_norm')(x)
        return nn.relu(x + y)


def _last_scale(zero: bool) -> nn.initializers.Initializer:
    return nn.initializers.zeros if zero else nn.initializers.ones
