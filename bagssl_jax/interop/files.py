"""Checkpoint files: .safetensors, and the pickles that PyTorch writes."""

import pathlib
import pickle
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from bagssl_jax.errors import InputError


def read_arrays(path: str) -> dict[str, np.ndarray]:
    """Every array of a checkpoint under its name; those of nested dictionaries, joined by dots.

    A file that does not end in .safetensors is taken for a pickle, needs PyTorch, and is read
    without running anything of it: classes and functions that it names, such as an optimiser's,
    are passed over.

    Raises:
      InputError: there is no such file, it cannot be read, or PyTorch is not installed.
    """
    if not pathlib.Path(path).is_file():
        raise InputError(f'--checkpoint={path}: no such file')
    return _read_safetensors(path) if path.endswith('.safetensors') else _read_pickle(path)


def read_notes(path: str) -> dict[str, str]:
    """The metadata of a .safetensors file; {} of any other.

    Raises:
      InputError: it cannot be read.
    """
    if not path.endswith('.safetensors'):
        return {}
    try:
        with safetensors.safe_open(path, 'numpy') as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f'--checkpoint={path} cannot be read: {error}') from None


def safetensors_bytes(arrays: Mapping[str, np.ndarray], notes: Mapping[str, str]) -> bytes:
    """A .safetensors file, with `notes` as its metadata."""
    return safetensors.numpy.save(dict(arrays), metadata={'format': 'pt', **notes})


def _read_safetensors(path: str) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load_file(path)
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise InputError(f'--checkpoint={path} cannot be read: {error}') from None


def _read_pickle(path: str) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise InputError(
            f"--checkpoint={path}: anything but .safetensors needs PyTorch: pip install '.[torch]'"
        ) from None
    try:
        # Without `weights_only`, which refuses the file for one name that it does not know.
        tree = torch.load(path, map_location='cpu', weights_only=False, pickle_module=_Restricted)
        return _flat(tree, torch)
    except Exception as error:  # unpickling raises whatever the bytes make it
        raise InputError(
            f'--checkpoint={path} cannot be read: it is damaged, or was not written by torch.save '
            f'({type(error).__name__})'
        ) from None


# What rebuilds arrays and plain containers, and runs nothing else, by module; as `weights_only` has
# it, and the settings and numbers that checkpoints hold beside arrays.
HARMLESS = {
    'torch': (
        *('Size', 'device', 'bool', 'bfloat16', 'float16', 'float32', 'float64'),
        *('uint8', 'int8', 'int16', 'int32', 'int64'),
    ),
    'torch._utils': ('_rebuild_tensor', '_rebuild_tensor_v2', '_rebuild_parameter'),
    'torch.nn.parameter': ('Parameter',),
    'collections': ('OrderedDict', 'Counter', 'defaultdict'),
    'argparse': ('Namespace',),
    'numpy': ('dtype', 'ndarray'),
    'numpy.core.multiarray': ('scalar', '_reconstruct'),
    'numpy._core.multiarray': ('scalar', '_reconstruct'),
    '_codecs': ('encode',),
    'builtins': ('set', 'frozenset', 'slice', 'complex', 'bytearray', 'list', 'dict', 'int'),
}


class _StandIn(dict):
    """What takes the place of any other class or function, and does nothing but hold items."""

    def __init__(self, *args: Any, **kwargs: Any):
        del args, kwargs
        super().__init__()

    def __call__(self, *args: Any, **kwargs: Any) -> '_StandIn':
        return _StandIn()

    def __setstate__(self, state: Any) -> None:
        del state

    def append(self, item: Any) -> None:
        del item

    def extend(self, items: Any) -> None:
        del items


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(module, name) if name in HARMLESS.get(module, ()) else _StandIn


class _Restricted:
    """What torch.load takes as `pickle_module`: runs nothing but what is harmless."""

    Unpickler = _Unpickler

    @staticmethod
    def load(file: BinaryIO, **options: Any) -> Any:
        return _Unpickler(file, **options).load()


def _flat(tree: Any, torch: Any, prefix: str = '') -> dict[str, np.ndarray]:
    arrays = {}
    for key, value in tree.items() if isinstance(tree, Mapping) else ():
        if isinstance(value, torch.Tensor):
            # NumPy has no bfloat16.
            value = value.float() if value.is_floating_point() else value
            arrays[f'{prefix}{key}'] = value.detach().numpy()
        else:
            arrays |= _flat(value, torch, f'{prefix}{key}.')
    return arrays
