"""Where the backbone lies in a checkpoint: under which prefix, and beside which heads.

The prefix is found by the first convolution of the first residual block, of which every ResNet has
one, or by the embedding of pixels, which every ViT has, whatever is wrapped around it:

    torchvision, and what VICReg, Barlow Twins and DINO publish     (none)
    VICReg and Barlow Twins while training      model.module.backbone.
    MoCo                                        state_dict.module.encoder_q.   (and encoder_k)
    MoCo v3                                     state_dict.module.base_encoder.
    SimSiam                                     state_dict.module.encoder.
    SwAV                                        module., or state_dict.module. while training
    DINO while training                         teacher.module.backbone.       (and student)
    solo-learn                                  state_dict.backbone., once state_dict.encoder.
    EMP-SSL                                     module.backbone.

An `nn.Sequential` of a ResNet's children, whose layers have numbers for names, is understood too,
also where the max-pooling or the classifier is left out of it.

Of two backbones, the one that the authors evaluate is taken: DINO's teacher before its student,
and for all others the network that is trained before its moving average.
"""

import itertools
import re
import textwrap
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from bagssl_jax.errors import InputError

HEADS = (
    'fc',
    'classifier',
    'head',
    'pre_feature',
    'predictor',
    'projection',
    'projection_head',
    'projector',
    'prototypes',
)


class Backbone(NamedTuple):
    """A ResNet or a ViT as it lies in a checkpoint.

    Attributes:
      prefix: of its names there.
      arrays: under their names in torchvision, or of a ViT in timm.
      left_out: what else there is, name of a module -> number of arrays.
    """

    prefix: str
    arrays: dict[str, np.ndarray]
    left_out: dict[str, int]


def find_backbone(arrays: Mapping[str, np.ndarray], prefix: str = '') -> Backbone:
    """Finds the ResNet or the ViT among the arrays of a checkpoint.

    Args:
      arrays: of the whole checkpoint, under dotted names.
      prefix: of its names; '' to find it, '.' where it is empty.

    Raises:
      InputError: there is none, several fit, or none has that prefix.
    """
    prefixes = sorted({match[1] for name in arrays if (match := _FIRST_LAYER.fullmatch(name))})
    prefix = _known_prefix(prefix, arrays, prefixes) if prefix else _preferred(arrays, prefixes)
    inside = {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}
    inside = _numbers_to_names(inside)
    backbone = {name: x for name, x in inside.items() if name.split('.')[0] not in HEADS}
    left_out = Counter(_module(name, prefix) for name in arrays if not name.startswith(prefix))
    left_out.update(prefix + name.split('.')[0] for name in inside.keys() - backbone.keys())
    return Backbone(prefix, backbone, dict(sorted(left_out.items())))


_FIRST_LAYER = re.compile(
    r'((?:.*\.)?)(?:(?:layer1|\d+)\.0\.conv1\.weight|patch_embed\.proj\.weight)'
)
_SECOND_CHOICE = re.compile(r'student|encoder_k|momentum|target|(^|[._])ema([._]|$)')


def _known_prefix(prefix: str, arrays: Mapping[str, np.ndarray], found: list[str]) -> str:
    """`prefix` with one dot behind it; InputError where no array has it."""
    prefix = f'{prefix.strip(".")}.'.lstrip('.')
    if not any(name.startswith(prefix) for name in arrays):
        raise InputError(
            f'--prefix={prefix}: no array has a name that begins so; '
            f'{_listed(found) if found else _holds(arrays)}'
        )
    return prefix


def _preferred(arrays: Mapping[str, np.ndarray], found: list[str]) -> str:
    if not found:
        raise InputError(
            'the checkpoint holds no ResNet with the names of torchvision and no ViT with those of '
            'timm: none ends in layer1.0.conv1.weight or patch_embed.proj.weight; '
            f'{_holds(arrays)}'
        )
    first = [prefix for prefix in found if not _SECOND_CHOICE.search(prefix)] or found
    if len(first) > 1:
        raise InputError(
            f'the checkpoint holds several encoders: give one by --prefix; {_listed(first)}'
        )
    return first[0]


def _listed(prefixes: list[str]) -> str:
    return f'there are encoders under {", ".join(prefix or "." for prefix in prefixes)}'


def _holds(arrays: Mapping[str, np.ndarray]) -> str:
    return f'it holds {textwrap.shorten(", ".join(arrays), 300) or "no arrays"}'


def _numbers_to_names(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """torchvision's names for those that nn.Sequential gives to a ResNet's children, in order."""
    blocks = [int(name.split('.')[0]) for name in arrays if _NUMBERED_BLOCK.match(name)]
    if not blocks:
        return arrays
    first = min(blocks)  # 4, or 3 without the max-pooling
    stages = {str(first + i): f'layer{i + 1}' for i in range(4)}
    names = {'0': 'conv1', '1': 'bn1', **stages, str(first + 5): 'fc'}
    parts = {name: name.partition('.') for name in arrays}
    return {names.get(head, head) + dot + rest: arrays[n] for n, (head, dot, rest) in parts.items()}


_NUMBERED_BLOCK = re.compile(r'\d+\.0\.conv1\.weight$')


def _module(name: str, prefix: str) -> str:
    """The outermost module that holds `name` and not the backbone under `prefix`."""
    parts = name.split('.')
    pairs = zip(parts, prefix.split('.'), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return '.'.join(parts[: shared + 1])
