"""Objectives: pure functions of the projections, z [b p k] -> (loss, terms by name)."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from bagssl_jax.errors import check_known
from bagssl_jax.objectives.barlow import barlow
from bagssl_jax.objectives.byol import byol
from bagssl_jax.objectives.sigreg import sigreg
from bagssl_jax.objectives.simclr import simclr
from bagssl_jax.objectives.spectral import spectral
from bagssl_jax.objectives.tcr import tcr
from bagssl_jax.objectives.vicreg import vicreg


class Objective(NamedTuple):
    """A loss, and what it is a loss of.

    Attributes:
      loss: (z, axis_name=..., key=...) -> (loss, terms) or, of an objective with a target,
        (prediction, target, axis_name=..., key=...) -> (loss, terms). The key is the step's, and
        the same on all devices.
      target: whether the loss is of a predictor's output and a momentum network's projection.
      centered: whether the loss takes `centers`, how many patches, the first of a bag, all others
        are to agree with.
    """

    loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    target: bool = False
    centered: bool = False


OBJECTIVES: dict[str, Objective] = {
    'barlow': Objective(barlow),
    'byol': Objective(byol, target=True),
    'sigreg': Objective(sigreg, centered=True),
    'simclr': Objective(simclr),
    'spectral': Objective(spectral),
    'tcr': Objective(tcr),
    'vicreg': Objective(vicreg),
}


def make_objective(
    name: str, settings: Mapping[str, Any], *, global_crops: int | None = None
) -> Objective:
    """The objective of that name, with the `settings` bound to its loss.

    Args:
      name: one of `OBJECTIVES`.
      settings: of the loss.
      global_crops: how many patches, the first of a bag, are global crops, where others are local.

    Raises:
      InputError: an unknown name.
    """
    check_known('objective', name, OBJECTIVES)
    objective = OBJECTIVES[name]
    centers = {'centers': global_crops} if objective.centered else {}
    return objective._replace(loss=functools.partial(objective.loss, **settings, **centers))
