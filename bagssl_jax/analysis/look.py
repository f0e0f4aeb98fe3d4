"""What an analysis returns."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Look:
    """What one analysis has found.

    Attributes:
      rows: its numbers, as JSON.
      figures: its pictures by name.
      table: its numbers as text to print.
    """

    rows: list[dict[str, Any]]
    figures: Mapping[str, Figure]
    table: str
