"""ResNet weights as Linen has them, and as torchvision names and lays them out.

Convolution kernels are [h w in out] here and [out in h w] there; all other arrays are the same.
Both place the stride of a bottleneck on its 3x3 convolution (version 1.5). A network that has it
on the first 1x1 (version 1, as in Caffe) has the same names and shapes, and cannot be told apart.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from bagssl_jax.errors import InputError

Variables = dict[str, Any]
Arrays = dict[str, np.ndarray]


def to_torchvision(variables: Variables) -> Arrays:
    """The arrays of a ResNet under torchvision's names, or of a Tiny or Shallow under the like.

    Args:
      variables: {'params', 'batch_stats'} of a `ResNet`, `Tiny` or `Shallow` of bagssl_jax.models.

    Returns:
      float32 arrays, without torchvision's classifier and without `num_batches_tracked`.
    """
    flat = traverse_util.flatten_dict(variables)
    return {
        _name(path): np.ascontiguousarray(np.transpose(x, _axes(x.shape, (3, 2, 0, 1))))
        for path, x in flat.items()
    }


def from_torchvision(arrays: Mapping[str, np.ndarray], like: Variables) -> Variables:
    """The Linen variables of a ResNet whose arrays have torchvision's names.

    Args:
      arrays: of floating point. `num_batches_tracked`, which only training reads, may be among
        them.
      like: the variables, or their shapes, of the encoder that is to have them.

    Returns:
      As `like`, float32 NumPy arrays.

    Raises:
      InputError: it lists arrays that are unknown, missing or of another shape.
    """
    flat = traverse_util.flatten_dict(like)
    expected = {_name(path): path for path in flat}
    shapes = {name: _torch_shape(flat[path].shape) for name, path in expected.items()}
    norms = {name.removesuffix('running_mean') for name in expected if 'running_mean' in name}
    ignored = {f'{norm}num_batches_tracked' for norm in norms}
    check_fits(arrays, shapes, ignored)
    return traverse_util.unflatten_dict(
        {
            path: np.transpose(
                np.asarray(arrays[name], np.float32), _axes(shapes[name], (2, 3, 1, 0))
            )
            for name, path in expected.items()
        }
    )


def check_fits(
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    ignored: Collection[str] = (),
) -> None:
    """Raises InputError, which lists arrays that are unknown, missing or of another shape.

    Args:
      arrays: that there are.
      shapes: of those that there must be, by the name.
      ignored: names of others that there may be.
    """
    faults = {
        'unknown': arrays.keys() - shapes.keys() - set(ignored),
        'missing': shapes.keys() - arrays.keys(),
        'of another shape': [
            f'{name} {arrays[name].shape} instead of {shape}'
            for name, shape in shapes.items()
            if name in arrays and arrays[name].shape != shape
        ],
    }
    if any(faults.values()):
        found = '; '.join(
            f'{kind}: {_some(sorted(names))}' for kind, names in faults.items() if names
        )
        raise InputError(f'the checkpoint does not fit the encoder that --arch names; {found}')


def _some(names: list[str]) -> str:
    more = f' and {len(names) - 2} more' if len(names) > 2 else ''
    return ', '.join(names[:2]) + more


_LAYERS = {
    'stem_conv': 'conv1',
    'stem_norm': 'bn1',
    'norm1': 'bn1',
    'norm2': 'bn2',
    'norm3': 'bn3',
    'norm4': 'bn4',  # a Tiny's
    **{f'stage{i}_conv': f'conv{i}' for i in (1, 2, 3)},  # a Shallow's
    **{f'stage{i}_norm': f'bn{i}' for i in (1, 2, 3)},
    'shortcut_conv': 'downsample.0',
    'shortcut_norm': 'downsample.1',
}
_LEAVES = {
    'kernel': 'weight',
    'scale': 'weight',
    'bias': 'bias',
    'mean': 'running_mean',
    'var': 'running_var',
}


def _name(path: tuple[str, ...]) -> str:
    """('params', 'stage1_block1', 'conv1', 'kernel') is called layer1.0.conv1.weight."""
    _, *blocks, layer, leaf = path
    parts = [_LAYERS.get(layer, layer), _LEAVES[leaf]]
    for block in blocks:
        stage, number = map(int, re.fullmatch(r'stage(\d+)_block(\d+)', block).groups())
        parts = [f'layer{stage}', str(number - 1), *parts]
    return '.'.join(parts)


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in _axes(shape, (3, 2, 0, 1)))


def _axes(shape: tuple[int, ...], of_kernel: tuple[int, ...]) -> tuple[int, ...]:
    """The order of the axes: `of_kernel` for a convolution's, as they are for a vector."""
    return of_kernel if len(shape) == 4 else tuple(range(len(shape)))
