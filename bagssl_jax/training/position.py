"""Where a training stands beside its state: what a checkpoint keeps to go on bit for bit."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from bagssl_jax.training.collapse import is_collapsed
from bagssl_jax.training.nonfinite import Metrics, Row, mean_row, read_rows

KEYS = ('unlogged', 'unreadable')  # without which a checkpoint counts as damaged


@dataclasses.dataclass
class Position:
    """The same in all processes.

    Attributes:
      unlogged: metrics of each step since they were last logged.
      unreadable: numbers of images that are left out.
      skipped: updates that were, as they were not finite.
      highest: effective rank of h so far, of steps that are saved.
      sound: the last step saved that was not collapsed, or None.
    """

    unlogged: list[Row] = dataclasses.field(default_factory=list)
    unreadable: set[int] = dataclasses.field(default_factory=set)
    skipped: int = 0
    highest: float = 0.0
    sound: int | None = None

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> 'Position':
        """That a checkpoint keeps; older versions knew only `KEYS`."""
        known = {field.name for field in dataclasses.fields(cls)}
        position = cls(**{name: value for name, value in kept.items() if name in known})
        position.unreadable = set(position.unreadable)
        return position

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return dataclasses.asdict(self) | {'unreadable': sorted(self.unreadable)}

    def read(self, under_way: Sequence[tuple[range, Metrics]], *, most_skipped: int) -> None:
        """Takes the metrics of some executions, as `nonfinite.read_rows` does."""
        rows, self.skipped = read_rows(under_way, skipped=self.skipped, at_most=most_skipped)
        self.unlogged.extend(rows)

    def take_logged(self) -> Row:
        """The mean of what has not been logged, which from now on has been."""
        row, self.unlogged = mean_row(self.unlogged), []
        return row

    def judge(self, step: int, spread: Mapping[str, float]) -> None:
        """Remembers whether a step that is to be saved is sound."""
        if not is_collapsed(spread, self.highest):
            self.sound = step
            self.highest = max(self.highest, float(spread['h_effective_rank']))
