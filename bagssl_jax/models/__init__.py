"""Encoders and projectors, as Linen modules that return (output, intermediates)."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bagssl_jax.errors import InputError
from bagssl_jax.models.projector import Projector
from bagssl_jax.models.resnet import HALF, ResNet, Tiny


def _resnet(stages: tuple[int, ...], bottleneck: bool) -> Callable[..., nn.Module]:
    def build(*, width, stem, zero_init_last, dtype, mean, std):
        if stem not in STEMS:
            raise InputError(f'unknown encoder.stem {stem!r}: choose from {", ".join(STEMS)}')
        return ResNet(
            stages=stages,
            bottleneck=bottleneck,
            width=width,
            stem=stem,
            zero_init_last=zero_init_last,
            dtype=dtype,
            mean=mean,
            std=std,
        )

    return build


def _tiny(*, width, stem, zero_init_last, dtype, mean, std):
    del stem, zero_init_last  # it has a stem of its own, and no residual blocks
    return Tiny(width=width, dtype=dtype, mean=mean, std=std)


STEMS = ('cifar', 'imagenet', 'cifar_pad2')
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
ENCODERS = {
    'resnet18': _resnet((2, 2, 2, 2), bottleneck=False),
    'resnet34': _resnet((3, 4, 6, 3), bottleneck=False),
    'resnet50': _resnet((3, 4, 6, 3), bottleneck=True),
    'tiny': _tiny,
}


def make_encoder(
    name: str,
    *,
    width: int,
    stem: str,
    zero_init_last: bool,
    dtype: str,
    mean: Sequence[float] = HALF,
    std: Sequence[float] = HALF,
) -> nn.Module:
    """The encoder that a configuration's `encoder` describes.

    Raises:
      InputError: an unknown name, stem or dtype, a width below 1, or a mean or standard deviation
        that no pixels have.
    """
    if name not in ENCODERS:
        raise InputError(f'unknown encoder {name!r}: choose from {", ".join(ENCODERS)}')
    if width < 1:
        raise InputError(f'encoder.width={width} must be at least 1')
    for key, values, least in (('mean', mean, -math.inf), ('std', std, 0)):
        if len(values) != 3 or not all(least < value < math.inf for value in values):
            raise InputError(
                f'encoder.{key}={tuple(values)} must be a number for each of the three channels'
                f'{", above 0" if key == "std" else ""}'
            )
    return ENCODERS[name](
        width=width,
        stem=stem,
        zero_init_last=zero_init_last,
        dtype=_dtype(dtype),
        mean=tuple(mean),
        std=tuple(std),
    )


def make_projector(*, widths: tuple[int, ...], dtype: str) -> Projector:
    """The projector, or the predictor, that a configuration describes.

    Raises:
      InputError: no layer, a width below 1, or an unknown dtype.
    """
    if not widths or min(widths) < 1:
        raise InputError(f'widths {tuple(widths)} must be positive integers, such as (256, 64)')
    return Projector(widths=tuple(widths), dtype=_dtype(dtype))


def init_variables(
    networks: Mapping[str, nn.Module | None], seed: int
) -> dict[str, dict[str, Any]]:
    """Fresh variables {'params', 'batch_stats'} of networks that follow one another.

    A pure function of `seed`: what a training starts from, and what an evaluation compares with.

    Args:
      networks: name -> module, in the order of the data; the first one takes pixels, None is
        left out.
      seed: of the parameters.
    """
    # Nothing in an encoder depends on the size of its input.
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = {}
    for i, (name, network) in enumerate(networks.items()):
        if network is not None:
            key = jax.random.fold_in(jax.random.key(seed), i)
            variables[name] = _init(network, key, x)
            x, _ = jax.eval_shape(functools.partial(network.apply, train=False), variables[name], x)
    return variables


def _init(module: nn.Module, key: jax.Array, x: jax.ShapeDtypeStruct) -> dict[str, Any]:
    # One compiled program: operation by operation, a ResNet takes ten times as long.
    variables = jax.jit(lambda key: module.init(key, jnp.zeros(x.shape), train=False))(key)
    return {'batch_stats': {}, **variables}  # a projector of one layer has no statistics


def _dtype(name: str) -> jnp.dtype:
    if name not in DTYPES:
        raise InputError(f'unknown encoder.dtype {name!r}: choose from {", ".join(DTYPES)}')
    return DTYPES[name]
