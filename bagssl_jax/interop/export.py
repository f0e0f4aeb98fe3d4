"""A run's frozen encoder in a file or a folder for other programs."""

import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from flax import linen as nn

from bagssl_jax import storage
from bagssl_jax.checkpoints import restore_items
from bagssl_jax.data.geometry import PatchGeometry
from bagssl_jax.errors import InputError
from bagssl_jax.interop import hub, vit
from bagssl_jax.interop.files import safetensors_bytes
from bagssl_jax.interop.names import Arrays, Variables, to_torchvision
from bagssl_jax.interop.onnx_graph import onnx_bytes
from bagssl_jax.interop.runs import ARCHS, described, shapes_of
from bagssl_jax.models import make_networks
from bagssl_jax.models.resnet import ResNet
from bagssl_jax.models.vit import ViT
from bagssl_jax.reporting.found import read_run
from bagssl_jax.runs import Run
from bagssl_jax.storage import reading


def export_encoder(run: Run, out: str) -> None:
    """Writes the encoder of the newest checkpoint of `run`, and prints what it is.

    Args:
      run: any, trained here or imported.
      out: FILE.onnx or FILE.safetensors, which is replaced where it exists, or an empty FOLDER, as
        `bagssl_jax.export` describes them; local or in a store.

    Raises:
      InputError: `out` is none of these, there is no undamaged checkpoint, its encoder has no such
        form, or something cannot be written.
    """
    form, place = _form(out)
    config = run.read_config()
    name, encoder = config['encoder']['name'], make_networks(config).encoder
    if form != '.onnx':
        _check_known_to_pytorch(run, name, encoder)
    if form == 'folder':
        hub.check(run, name, encoder)
    frozen = _read(run, config, name, encoder)
    if form == '.onnx':
        contents = {place: onnx_bytes(frozen.encoder, frozen.arrays, frozen.notes)}
    elif form == '.safetensors':
        contents = {place: safetensors_bytes(frozen.arrays, frozen.notes)}
    else:
        side = PatchGeometry.of(config['patches']).input_side
        made = hub.files(read_run(run), name, encoder, frozen.arrays, frozen.notes, side=side)
        contents = {place / file: content for file, content in made.items()}
    for path, content in contents.items():
        storage.write(path, content)
    print(f'{out}: step {frozen.step:,}, {described(encoder, name, frozen.variables)}')


class _Frozen(NamedTuple):
    """What is exported.

    Attributes:
      encoder: the module.
      variables: float32, as Linen has them.
      arrays: the same with torchvision's names, or of a ViT with timm's.
      notes: what else says what the encoder is.
      step: of the checkpoint.
    """

    encoder: nn.Module
    variables: Variables
    arrays: Arrays
    notes: dict[str, str]
    step: int


def _form(out: str) -> tuple[str, epath.Path]:
    """'.onnx', '.safetensors' or 'folder', and where; InputError where it is none of them."""
    try:
        path = epath.Path(out)
    except KeyError as error:
        raise InputError(
            f'--out={out}: {error.args[0]} is not a store: give a local place, s3://BUCKET/NAME or '
            'gs://BUCKET/NAME'
        ) from None
    with reading(out):
        is_folder = out.endswith(('/', os.sep)) or path.is_dir()
        if is_folder and path.exists() and any(path.iterdir()):
            raise InputError(f'--out={out} holds files already: give another folder, or empty it')
    suffix = pathlib.PurePath(out).suffix
    if is_folder or not suffix:
        return 'folder', path
    if suffix not in ('.onnx', '.safetensors'):
        raise InputError(f'--out={out}: give FILE.onnx, FILE.safetensors, or FOLDER/')
    return suffix, path


def _check_known_to_pytorch(run: Run, name: str, encoder: nn.Module) -> None:
    if not isinstance(encoder, ResNet | ViT):
        raise InputError(
            f'{run} holds an encoder named {name}, which PyTorch has no name for: give '
            f'--out=FILE.onnx; the other forms are for {", ".join(ARCHS)}'
        )


def _read(run: Run, config: dict[str, Any], name: str, encoder: nn.Module) -> _Frozen:
    like = shapes_of(encoder, PatchGeometry.of(config['patches']).input_side)
    step, items = restore_items(run, {'encoder': like})
    variables = jax.device_get(items['encoder'])
    if isinstance(encoder, ViT):
        own, arrays = ('width', 'heads', 'pool'), vit.to_timm(variables, encoder)
    else:
        own = ('width', 'stem') if isinstance(encoder, ResNet) else ('width',)
        arrays = to_torchvision(variables)
    notes = {'step': step, 'name': name}
    notes |= {key: getattr(encoder, key) for key in (*own, 'mean', 'std')}
    return _Frozen(
        encoder,
        variables,
        {key: np.ascontiguousarray(x) for key, x in arrays.items()},
        {key: str(value) for key, value in notes.items()},
        step,
    )
