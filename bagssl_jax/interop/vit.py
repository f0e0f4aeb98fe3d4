"""ViT weights as Linen has them, and as timm and DINO name and lay them out.

Both have the same names. Attention's queries, keys and values are one linear layer there, `qkv`,
with the heads one after the other in each; the class token's position comes first of all.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bagssl_jax.errors import InputError
from bagssl_jax.interop.names import Arrays, Variables, check_fits
from bagssl_jax.models.vit import ViT

EMBEDDING = 'patch_embed.proj.weight'
HEAD_WIDTH = 64  # of every ViT that the registry knows, of timm's and of DINO's


def settings_of(arrays: Mapping[str, np.ndarray], heads: int = 0) -> dict[str, Any]:
    """What the shapes of a ViT's arrays tell: the settings of its group in a configuration.

    h is the class token where there is one, as DINO and timm's classifiers have it, and else the
    mean; either way the mean of what comes before the last norm where that is called fc_norm.

    Args:
      arrays: under timm's names.
      heads: of attention, of which the shapes tell nothing; 0: as many as are 64 wide.

    Raises:
      InputError: the shapes are not those of a ViT on square images.
    """
    shape = arrays[EMBEDDING].shape
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
        raise InputError(f'{EMBEDDING} has the shape {shape}: (width, 3, side, side) is needed')
    width, patch = shape[0], shape[2]
    class_token = 'cls_token' in arrays
    places = arrays['pos_embed'].shape if 'pos_embed' in arrays else ()
    tokens = places[1] - class_token if len(places) == 3 else 0
    grid = math.isqrt(max(tokens, 0))
    if not grid or grid**2 != tokens:
        one = ', one of them of the class token' if class_token else ''
        raise InputError(f'pos_embed has the shape {places}: (1, positions{one}, width) is needed')
    if not heads and width % HEAD_WIDTH:
        raise InputError(
            f'{EMBEDDING} has the shape {shape}: heads of {HEAD_WIDTH} cannot share that width'
        )
    pool = 'class' if class_token else 'mean'
    return {
        'width': width,
        'depth': len({name.split('.')[1] for name in arrays if name.startswith('blocks.')}),
        'heads': heads or width // HEAD_WIDTH,
        'patch': patch,
        'class_token': class_token,
        'pool': 'mean_norm' if 'fc_norm.weight' in arrays else pool,
        'image_size': grid * patch,
    }


def to_timm(variables: Variables, encoder: ViT) -> Arrays:
    """The arrays of a ViT under timm's names.

    Args:
      variables: {'params'} of `encoder`, or their shapes inside of jax.eval_shape.
      encoder: whose variables they are.

    Returns:
      float32 arrays, without a classifier.
    """
    params, width = variables['params'], encoder.width
    norm = 'fc_norm' if encoder.pool == 'mean_norm' else 'norm'
    positions = params['positions'].reshape(1, -1, width)  # [h' w' d] -> [1 t d]
    # [p*p*c d] -> [p p c d] -> [d c p p]
    pixels = params['embed']['kernel'].reshape(encoder.patch, encoder.patch, 3, width)
    arrays = {
        EMBEDDING: pixels.transpose(3, 2, 0, 1),
        'patch_embed.proj.bias': params['embed']['bias'],
        **_norm(norm, params['norm']),
    }
    if encoder.class_token:
        arrays['cls_token'] = params['class_token'].reshape(1, 1, width)
        first = params['class_position'].reshape(1, 1, width)
        positions = jnp.concatenate([first, positions], axis=1)
    arrays['pos_embed'] = positions
    for i in range(encoder.depth):
        block, name = params[f'block{i + 1}'], f'blocks.{i}'
        attention, out = block['attention'], block['attention']['out']
        parts = [attention[part] for part in _PARTS]
        kernels = [part['kernel'].reshape(width, width).T for part in parts]  # [d a e] -> [a*e d]
        arrays |= {
            f'{name}.attn.qkv.weight': jnp.concatenate(kernels),
            f'{name}.attn.qkv.bias': jnp.concatenate([part['bias'].ravel() for part in parts]),
            f'{name}.attn.proj.weight': out['kernel'].reshape(width, width).T,  # [a e d] -> [d a*e]
            f'{name}.attn.proj.bias': out['bias'],
        }
        for norm in ('norm1', 'norm2'):
            arrays |= _norm(f'{name}.{norm}', block[norm])
        for dense, theirs in _DENSE.items():
            arrays[f'{name}.{theirs}.weight'] = block[dense]['kernel'].T
            arrays[f'{name}.{theirs}.bias'] = block[dense]['bias']
    return arrays


def from_timm(arrays: Mapping[str, np.ndarray], encoder: ViT, like: Variables) -> Variables:
    """The Linen variables of a ViT whose arrays have timm's names.

    Args:
      arrays: of floating point.
      encoder: that is to have them.
      like: its variables, or their shapes.

    Returns:
      As `like`, float32 NumPy arrays.

    Raises:
      InputError: it lists arrays that are unknown, missing or of another shape.
    """
    shapes = jax.eval_shape(lambda variables: to_timm(variables, encoder), like)
    check_fits(arrays, {name: x.shape for name, x in shapes.items()})
    arrays = {name: np.asarray(x, np.float32) for name, x in arrays.items()}
    width, heads = encoder.width, encoder.heads
    split = (heads, width // heads)
    norm = 'fc_norm' if encoder.pool == 'mean_norm' else 'norm'
    positions = arrays['pos_embed'][0, encoder.class_token :]
    params = {
        'embed': {
            'kernel': arrays[EMBEDDING].transpose(2, 3, 1, 0).reshape(-1, width),
            'bias': arrays['patch_embed.proj.bias'],
        },
        'positions': positions.reshape(like['params']['positions'].shape),
        'norm': _linen_norm(arrays, norm),
    }
    if encoder.class_token:
        params['class_token'] = arrays['cls_token'].reshape(width)
        params['class_position'] = arrays['pos_embed'][0, 0]
    for i in range(encoder.depth):
        name = f'blocks.{i}'
        weights = np.split(arrays[f'{name}.attn.qkv.weight'], 3)
        biases = np.split(arrays[f'{name}.attn.qkv.bias'], 3)
        attention = {
            part: {'kernel': weight.T.reshape(width, *split), 'bias': bias.reshape(split)}
            for part, weight, bias in zip(_PARTS, weights, biases, strict=True)
        }
        attention['out'] = {
            'kernel': arrays[f'{name}.attn.proj.weight'].T.reshape(*split, width),
            'bias': arrays[f'{name}.attn.proj.bias'],
        }
        params[f'block{i + 1}'] = {
            'attention': attention,
            **{norm: _linen_norm(arrays, f'{name}.{norm}') for norm in ('norm1', 'norm2')},
            **{
                dense: {
                    'kernel': arrays[f'{name}.{theirs}.weight'].T,
                    'bias': arrays[f'{name}.{theirs}.bias'],
                }
                for dense, theirs in _DENSE.items()
            },
        }
    return {**like, 'params': params}


_PARTS = ('query', 'key', 'value')
_DENSE = {'dense1': 'mlp.fc1', 'dense2': 'mlp.fc2'}


def _norm(name: str, norm: Mapping[str, Any]) -> dict[str, Any]:
    return {f'{name}.weight': norm['scale'], f'{name}.bias': norm['bias']}


def _linen_norm(arrays: Arrays, name: str) -> dict[str, np.ndarray]:
    return {'scale': arrays[f'{name}.weight'], 'bias': arrays[f'{name}.bias']}
