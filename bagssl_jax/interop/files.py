"""Checkpoint files: .safetensors, and the pickles that PyTorch writes."""

import argparse
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from bagssl_jax.errors import InputError


def read_arrays(path: str) -> dict[str, np.ndarray]:
    """Every array of a checkpoint under its name; those of nested dictionaries, joined by dots.

    A file that does not end in .safetensors is taken for a pickle, needs PyTorch, and is read
    with `weights_only`: nothing in it is executed.

    Raises:
      InputError: there is no such file, it cannot be read, or PyTorch is not installed.
    """
    if not pathlib.Path(path).is_file():
        raise InputError(f'--checkpoint={path}: no such file')
    return _read_safetensors(path) if path.endswith('.safetensors') else _read_pickle(path)


def write_arrays(path: str, arrays: Mapping[str, np.ndarray], notes: Mapping[str, str]) -> None:
    """Writes a .safetensors file, with `notes` as its metadata.

    Raises:
      InputError: it cannot be written, or has another suffix.
    """
    if not path.endswith('.safetensors'):
        raise InputError(f'--export={path}: give a file that ends in .safetensors')
    try:
        safetensors.numpy.save_file(dict(arrays), path, metadata={'format': 'pt', **notes})
    except (OSError, SafetensorError) as error:
        raise InputError(f'--export={path} cannot be written: {error}') from None


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
        with torch.serialization.safe_globals(_harmless()):
            return _flat(torch.load(path, map_location='cpu', weights_only=True), torch)
    except Exception as error:  # unpickling raises whatever the bytes make it
        if refused := re.search(r'GLOBAL (\S+)', str(error)):
            raise InputError(
                f'--checkpoint={path} holds more than arrays ({refused[1]}), which could run code '
                'when read: if you trust its source, save its state dict alone, as in torch.save('
                "torch.load(FILE, weights_only=False)['state_dict'], NEW_FILE)"
            ) from None
        raise InputError(
            f'--checkpoint={path} cannot be read: it is damaged, or was not written by torch.save '
            f'({type(error).__name__})'
        ) from None


def _harmless() -> list[Any]:
    """What checkpoints hold beside arrays, and `weights_only` does not know: settings, numbers."""
    scalar = np.float64().__reduce__()[0]
    as_in_numpy_1 = (scalar, 'numpy.core.multiarray.scalar')
    dtypes = [type(np.dtype(code)) for code in ('f4', 'f8', 'i4', 'i8', 'b1')]
    return [argparse.Namespace, scalar, as_in_numpy_1, np.dtype, *dtypes]


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
