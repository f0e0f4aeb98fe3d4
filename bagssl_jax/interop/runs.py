"""From a PyTorch checkpoint to the directory of a run."""

import contextlib
import functools
import hashlib
import pathlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bagssl_jax.checkpoints import Checkpoints
from bagssl_jax.defaults import VITS, check_ranges, get_config
from bagssl_jax.errors import InputError, check_known
from bagssl_jax.interop import vit
from bagssl_jax.interop.files import read_arrays, read_notes
from bagssl_jax.interop.layouts import Backbone, find_backbone
from bagssl_jax.interop.names import Variables, from_torchvision
from bagssl_jax.interop.projectors import find_projector
from bagssl_jax.models import ENCODERS, Networks, init_variables, make_networks
from bagssl_jax.models.resnet import ResNet
from bagssl_jax.models.vit import ViT
from bagssl_jax.parallel import sharded_shapes
from bagssl_jax.runs import Run

RESNETS = tuple(name for name in ENCODERS if name.startswith('resnet'))
ARCHS = (*RESNETS, *VITS)
IMAGENET = {'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225)}


def import_checkpoint(
    checkpoint: str,
    arch: str,
    run: Run,
    *,
    prefix: str,
    stem: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """Makes checkpoint 0 of `run` of the encoder of a PyTorch checkpoint, and of its projector.

    The projector comes where its layout is known: see `find_projector`.

    Prints what was taken, and what was left out.

    Args:
      checkpoint: .safetensors, or a pickle of PyTorch.
      arch: one of `ARCHS`; '' for what `export_encoder` wrote into the file, and so with `stem`,
        `mean` and `std`.
      run: whose directory is created where it does not exist.
      prefix: of the encoder's names in the file; '' to find it, '.' where it is empty.
      stem: of a ResNet, one of `models.resnet.STEMS`; '' for the one that has the first
        convolution's size.
      mean, std: what the encoder was trained to have subtracted from pixels in [0, 1], and
        divided by, for each channel; () for ImageNet's, where the file does not say.

    Raises:
      InputError: the file or the settings are wrong, arrays are unknown, missing or of another
        shape, or the directory holds another run. Nothing is written then.
    """
    if arch:
        check_known('--arch', arch, ARCHS)
    arrays, notes = read_arrays(checkpoint), _exported(checkpoint)
    given = {'name': arch, 'stem': stem, 'mean': tuple(mean), 'std': tuple(std)}
    known = IMAGENET | notes | {key: value for key, value in given.items() if value}
    if 'name' not in known:
        check_known('--arch', arch, ARCHS)
    arch, mean, std = known['name'], known['mean'], known['std']
    found = find_backbone(arrays, prefix)
    settings = _settings(arch, found, known)
    config = imported_config(arch, settings, mean=mean, std=std)
    if projector := find_projector(arrays, found.prefix):
        config['projector'] |= {'widths': projector.widths, 'last_bias': projector.last_bias}
    encoder = make_networks(config).encoder
    like = shapes_of(encoder, 32)
    items = {
        'encoder': vit.from_timm(found.arrays, encoder, like)
        if isinstance(encoder, ViT)
        else from_torchvision(found.arrays, like)
    }
    if projector:
        items['projector'] = projector.variables
    config['imported'] = {
        'file': pathlib.Path(checkpoint).name,
        'sha256': _sha256(checkpoint),
        'prefix': found.prefix,
    }
    _check_vacant(run)
    run.claim(config, None)
    with contextlib.closing(Checkpoints(run, keep=1)) as checkpoints:
        checkpoints.save(0, jax.tree.map(jnp.asarray, items), {})
    taken = [found.prefix or 'names without a prefix', *(projector.modules if projector else ())]
    left_out = ', '.join(f'{k} ({n})' for k, n in found.left_out.items() if k not in taken)
    for key, value in notes.items():
        if known[key] != value:
            print(f'{key} {known[key]} as given, where {checkpoint} says {value}')
    print(f'taken: {", ".join(taken)}')
    print(f'left out, with the number of arrays: {left_out or "nothing"}')
    print(f'{run}: {described(encoder, arch, items["encoder"])}')
    if projector:
        print(f'with a projector of widths {", ".join(map(str, projector.widths))}')
    if settings.get('stem') == 'cifar':
        print("the stem pads by 1; for solo-learn's, which pads by 2, give --stem=cifar_pad2")


def imported_config(
    arch: str, settings: Mapping[str, Any], *, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """The configuration of a run that is imported: the defaults, but for what an import knows.

    The images that the encoder is probed on are set where it is probed. Patches are a quarter of
    the image's area, and resized to what such encoders were trained on: 224 pixels with
    ImageNet's stem, to which smaller images are enlarged too, and 32 with CIFAR's; of a ViT, what
    its positions are of. There is no projector yet.

    Args:
      arch: name of the encoder.
      settings: of the encoder's group that differ from the defaults.
      mean, std: of the pixels.

    Raises:
      InputError: a number out of its range.
    """
    config = get_config()
    config.data.name = ''
    of_resnet = 224 if settings.get('stem') == 'imagenet' else 32
    config.patches.resize = settings.get('image_size', of_resnet)
    config.encoder.name = arch
    config.encoder[arch].update(settings)
    config.encoder.mean = tuple(mean)
    config.encoder.std = tuple(std)
    config.projector.widths = ()
    config.probe.enlarge = config.patches.resize > 32
    config.probe.views = ('bag', 'center', 'whole')
    config.probe.batch_size = 256
    check_ranges(config := config.to_dict())
    return config


def shapes_of(encoder: nn.Module, side: int) -> Variables:
    """The shapes of an encoder's variables, to be restored on one device.

    Args:
      encoder: a ViT that has an image_size, and a ResNet, do not depend on the side.
      side: in pixels, of the input.
    """
    init = functools.partial(init_variables, Networks(encoder), side=side)
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return sharded_shapes(jax.eval_shape(init, 0)['encoder'], sharding)


def described(encoder: nn.Module, name: str, variables: Variables) -> str:
    """What an encoder of that name is, and what pixels it takes."""
    size = sum(x.size for x in jax.tree.leaves(variables['params']))
    own = ''
    if isinstance(encoder, ViT):
        own = f'{encoder.patch}x{encoder.patch} pixels a token, {_POOLED[encoder.pool]}, '
    elif isinstance(encoder, ResNet):
        own = f'{encoder.stem} stem, '
    return (
        f'{name} of width {encoder.width}, {own}{size:,} parameters, for pixels in '
        f'[0, 1] less {encoder.mean} and divided by {encoder.std}'
    )


def _settings(arch: str, found: Backbone, known: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an encoder that its arrays tell, with what is `known` of it besides.

    Raises:
      InputError: another `arch` fits the arrays, or none does.
    """
    if vit.EMBEDDING in found.arrays:
        settings = vit.settings_of(found.arrays, heads=known.get('heads', 0))
        fitting = [name for name, (width, _) in VITS.items() if width == settings['width']]
        _check_arch(arch, fitting if arch in VITS else fitting or list(VITS))
        return settings | {key: known[key] for key in ('pool',) if key in known}
    _check_arch(arch, _fitting_resnets(found.arrays) or [*RESNETS] * (arch in VITS))
    width, fitting_stem = _stem(found)
    return {'width': width, 'stem': known.get('stem') or fitting_stem}


def _check_arch(arch: str, fitting: Sequence[str]) -> None:
    """Raises InputError where one of others is `fitting`."""
    if fitting and arch not in fitting:
        others = ' or '.join(f'--arch={name}' for name in fitting)
        raise InputError(f'--arch={arch}: the checkpoint holds a {fitting[0]}: {others}')


def _fitting_resnets(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """The one that has as many blocks, if there is one."""
    blocks = {match[0] for name in arrays if (match := re.match(r'layer\d+\.\d+\.', name))}
    counts = Counter(block.partition('.')[0] for block in blocks)
    stages = tuple(counts[f'layer{i}'] for i in range(1, 5))
    bottleneck = 'layer1.0.conv3.weight' in arrays
    blocks = ((stages,), bottleneck)
    made = {name: ENCODERS[name] for name in RESNETS}
    return [
        name for name, m in made.items() if (m.args, m.keywords.get('bottleneck', False)) == blocks
    ]


def _stem(found: Backbone) -> tuple[int, str]:
    """Width, and stem, that the first convolution has."""
    if 'conv1.weight' not in found.arrays:
        return 64, 'imagenet'  # it will be listed, with all else that is missing
    shape = found.arrays['conv1.weight'].shape
    stems = {(3, 3, 3): 'cifar', (3, 7, 7): 'imagenet'}
    if shape[1:] not in stems:
        raise InputError(
            f'{found.prefix}conv1.weight has the shape {shape}: (width, 3, 7, 7) or '
            '(width, 3, 3, 3) is needed'
        )
    return shape[0], stems[shape[1:]]


def _exported(path: str) -> dict[str, Any]:
    """What `export_encoder` wrote into a file; {} of others.

    That is 'name', 'mean', 'std' and, of a ResNet, 'stem', of a ViT, 'heads' and 'pool'.
    """
    notes = read_notes(path)
    if not {'name', 'mean', 'std'} <= notes.keys():
        return {}
    try:
        numbers = {
            key: tuple(float(part) for part in notes[key].strip('()').split(','))
            for key in ('mean', 'std')
        }
        heads = {'heads': int(notes['heads'])} if 'heads' in notes else {}
    except ValueError:  # not by this program
        return {}
    texts = {key: notes[key] for key in ('name', 'stem', 'pool') if key in notes}
    return texts | heads | numbers


def _check_vacant(run: Run) -> None:
    """Raises InputError for checkpoints that no configuration says anything about."""
    if run.checkpoints.exists() and run.read_json('config.json') is None:
        raise InputError(f'{run} holds checkpoints already: give another --workdir')


def _sha256(path: str) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


_POOLED = {
    'mean': 'h the mean of the tokens',
    'mean_norm': 'h the mean of the tokens, normalised',
    'class': 'h the class token',
}
