"""Objectives: pure functions of the projections, z [b p k] -> (loss, terms by name)."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from bagssl_jax.errors import InputError
from bagssl_jax.objectives.tcr import tcr
from bagssl_jax.objectives.vicreg import vicreg

Objective = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]

OBJECTIVES: dict[str, Objective] = {'tcr': tcr, 'vicreg': vicreg}


def make_objective(name: str, settings: Mapping[str, Any]) -> Objective:
    """The objective of that name with its `settings` bound: (z, axis_name=...) -> (loss, terms).

    Raises:
      InputError: an unknown name.
    """
    if name not in OBJECTIVES:
        raise InputError(f'unknown objective {name!r}: choose from {", ".join(OBJECTIVES)}')
    return functools.partial(OBJECTIVES[name], **settings)
