"""What a look returns."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from bagssl_jax.errors import InputError


class Inapplicable(InputError):
    """This look cannot be taken of this encoder or of these images. The message says why."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure, and its words.

    Attributes:
      figure: at 100 or more dots an inch, readable on a white ground.
      alt: what is to be seen in it, for those who cannot see it: with the numbers that matter.
      caption: one sentence on how to read it.
    """

    figure: Figure
    alt: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Look:
    """What one look has found.

    Attributes:
      rows: its numbers, as JSON.
      table: its numbers as text to print.
      figures: its pictures by name.
      notes: lines on what was not looked at, and why: 'h alone: there is no projector'.
    """

    rows: list[dict[str, Any]]
    table: str
    figures: Mapping[str, Picture]
    notes: tuple[str, ...] = ()
