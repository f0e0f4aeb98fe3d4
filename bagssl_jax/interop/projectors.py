"""The projector of a checkpoint, where its layout is known.

Linear layers with BatchNorm and ReLU between them, in an nn.Sequential beside a backbone called
`backbone`: `projector` of VICReg, Barlow Twins and solo-learn, or `pre_feature` and `projection` of
EMP-SSL, one after the other.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from bagssl_jax.interop.names import Variables

HEADS = (('pre_feature', 'projection'), ('projector',))


class FoundProjector(NamedTuple):
    """A projector as `models.projector.Projector` has it.

    Attributes:
      modules: under which it lies in the checkpoint.
      widths: of its layers.
      last_bias: whether the last layer has a bias.
      variables: {'params', 'batch_stats'}, float32.
    """

    modules: tuple[str, ...]
    widths: tuple[int, ...]
    last_bias: bool
    variables: Variables


def find_projector(arrays: Mapping[str, np.ndarray], prefix: str) -> FoundProjector | None:
    """The projector beside the backbone under `prefix`; None where there is none of that layout.

    A bias before a BatchNorm, which Projector has not, is taken off its running mean.

    Args:
      arrays: of the whole checkpoint, under dotted names.
      prefix: of the backbone's names.
    """
    parent, is_backbone, _ = prefix.rpartition('backbone.')
    if not is_backbone:
        return None
    for heads in HEADS:
        modules = tuple(parent + head for head in heads)
        places = [place for module in modules for place in _places(arrays, module)]
        if places and (found := _read(places)):
            return FoundProjector(modules, *found)
    return None


def _places(
    arrays: Mapping[str, np.ndarray], module: str
) -> list[tuple[int, dict[str, np.ndarray]]]:
    """Place in an nn.Sequential -> its arrays, in their order."""
    places: dict[int, dict[str, np.ndarray]] = {}
    pattern = re.compile(re.escape(module) + r'\.(\d+)\.(\w+)')
    for name, x in arrays.items():
        if match := pattern.fullmatch(name):
            places.setdefault(int(match[1]), {})[match[2]] = x
    return sorted(places.items())


def _read(
    places: list[tuple[int, dict[str, np.ndarray]]],
) -> tuple[tuple[int, ...], bool, Variables] | None:
    linears, norms = places[::2], places[1::2]
    if len(linears) != len(norms) + 1:
        return None
    params, stats, widths = {}, {}, []
    for i, (place, linear) in enumerate(linears, start=1):
        weight, bias = linear.get('weight'), linear.get('bias')
        if weight is None or weight.ndim != 2 or 'running_mean' in linear:
            return None
        params[f'dense{i}'] = {'kernel': np.asarray(weight.T, np.float32)}
        widths.append(len(weight))
        if i == len(linears):
            if bias is not None:
                params[f'dense{i}']['bias'] = np.asarray(bias, np.float32)
            continue
        norm_place, norm = norms[i - 1]
        # A ReLU, which has no arrays, comes next; EMP-SSL's second part begins at 0 again.
        if norm_place != place + 1 or linears[i][0] not in (place + 3, 0):
            return None
        if not {'weight', 'bias', 'running_mean', 'running_var'} <= norm.keys():
            return None
        mean = norm['running_mean'] - (0 if bias is None else bias)
        params[f'norm{i}'] = {'scale': norm['weight'], 'bias': norm['bias']}
        stats[f'norm{i}'] = {'mean': np.asarray(mean, np.float32), 'var': norm['running_var']}
    return tuple(widths), 'bias' in linears[-1][1], {'params': params, 'batch_stats': stats}
