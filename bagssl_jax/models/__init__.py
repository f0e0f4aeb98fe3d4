"""Encoders and projectors, as Linen modules that return (output, intermediates)."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bagssl_jax.errors import check_known
from bagssl_jax.models.projector import INITS, Projector
from bagssl_jax.models.resnet import HALF, resnet, tiny
from bagssl_jax.models.shallow import Shallow, shallow, whitening_kernel, with_whitening
from bagssl_jax.models.vit import vit


class Networks(NamedTuple):
    """Linen modules in the order of the data; what is not there is None."""

    encoder: nn.Module
    projector: nn.Module | None = None
    predictor: nn.Module | None = None


# Called with the settings of the configuration's group of the same name, and dtype, mean and std.
ENCODERS: dict[str, Callable[..., nn.Module]] = {
    'resnet18': functools.partial(resnet, (2, 2, 2, 2)),
    'resnet34': functools.partial(resnet, (3, 4, 6, 3)),
    'resnet50': functools.partial(resnet, (3, 4, 6, 3), bottleneck=True),
    'resnet101': functools.partial(resnet, (3, 4, 23, 3), bottleneck=True),
    'resnet152': functools.partial(resnet, (3, 8, 36, 3), bottleneck=True),
    'resnet200': functools.partial(resnet, (3, 24, 36, 3), bottleneck=True),
    'tiny': tiny,
    'shallow': shallow,
    **dict.fromkeys(('vit_ti', 'vit_s', 'vit_b'), vit),  # whose settings tell them apart
}
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def make_networks(config: Mapping[str, Any], *, predictor: bool = False) -> Networks:
    """The networks that a configuration's `encoder`, `projector` and `predictor` describe.

    There is no projector where `projector.widths` is empty, as of an imported encoder.

    Args:
      config: nested.
      predictor: whether there is one.

    Raises:
      InputError: a setting is unknown.
    """
    encoder, dtype = config['encoder'], config['encoder']['dtype']
    name = encoder['name']
    heads = [
        make_projector(**config[head], dtype=dtype) if wanted else None
        for head, wanted in (('projector', config['projector']['widths']), ('predictor', predictor))
    ]
    made = make_encoder(
        name, encoder.get(name, {}), dtype=dtype, mean=encoder['mean'], std=encoder['std']
    )
    groups = encoder['norm_groups']
    return Networks(*(m if m is None else m.clone(norm_groups=groups) for m in (made, *heads)))


def make_encoder(
    name: str,
    settings: Mapping[str, Any],
    *,
    dtype: str,
    mean: Sequence[float] = HALF,
    std: Sequence[float] = HALF,
) -> nn.Module:
    """The encoder of that name.

    Args:
      name: one of `ENCODERS`.
      settings: its own, as in the group of that name.
      dtype: of the computation, one of `DTYPES`.
      mean, std: of the pixels in [0, 1], by channel: subtracted, and divided by.

    Raises:
      InputError: an unknown name or dtype, or a setting that cannot be.
    """
    check_known('encoder', name, ENCODERS)
    return ENCODERS[name](**settings, dtype=_dtype(dtype), mean=tuple(mean), std=tuple(std))


def make_projector(
    *,
    widths: tuple[int, ...],
    dtype: str,
    init: str = 'lecun_normal',
    last_bias: bool = True,
    last_norm: bool = False,
) -> Projector:
    """The projector, or the predictor, that a configuration describes.

    Raises:
      InputError: an unknown dtype or init.
    """
    check_known('projector.init', init, INITS)
    return Projector(
        widths=tuple(widths),
        dtype=_dtype(dtype),
        initializer=init,
        last_bias=last_bias,
        last_norm=last_norm,
    )


def init_variables(networks: Networks, seed: int, *, side: int) -> dict[str, dict[str, Any]]:
    """Fresh variables {'params', 'batch_stats'} of networks that follow one another, by name.

    A pure function of its arguments: what a training starts from, and what an evaluation compares
    with.

    Args:
      networks: each takes what the one before it gives; the first takes pixels.
      seed: of the parameters.
      side: of the images that the encoder is for, in pixels.
    """
    x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    variables = {}
    for i, (name, network) in enumerate(networks._asdict().items()):
        if network is not None:
            key = jax.random.fold_in(jax.random.key(seed), i)
            variables[name] = _init(network, key, x)
            x, _ = jax.eval_shape(functools.partial(network.apply, train=False), variables[name], x)
    return variables


def takes_statistics(networks: Networks) -> bool:
    """Whether a layer of the encoder is made of statistics of training patches."""
    return isinstance(networks.encoder, Shallow)


def with_statistics(
    networks: Networks, variables: Mapping[str, Any], patches: np.ndarray
) -> dict[str, Any]:
    """The encoder's variables with the layer that is made of training patches, uint8 [n h w 3]."""
    encoder = networks.encoder
    return with_whitening(variables, whitening_kernel(patches, encoder.mean, encoder.std))


def with_statistics_of(
    networks: Networks, variables: Mapping[str, Any], other: Mapping[str, Any]
) -> dict[str, Any]:
    """The encoder's variables with the layer that others have from training patches, if any."""
    if not takes_statistics(networks):
        return dict(variables)
    return with_whitening(variables, other['batch_stats']['whitening']['kernel'])


def _init(module: nn.Module, key: jax.Array, x: jax.ShapeDtypeStruct) -> dict[str, Any]:
    # One compiled program: operation by operation, a ResNet takes ten times as long. It runs once:
    # LLVM need not optimise it, which takes an eighth of the time and gives the same numbers.
    init = jax.jit(lambda key: module.init(key, jnp.zeros(x.shape), train=False))
    if not isinstance(key, jax.core.Tracer) and jax.default_backend() == 'cpu':
        init = init.lower(key).compile({'xla_backend_optimization_level': 1})
    variables = init(key)
    return {'batch_stats': {}, **variables}  # a projector of one layer has no statistics


def _dtype(name: str) -> jnp.dtype:
    check_known('encoder.dtype', name, DTYPES)
    return DTYPES[name]
