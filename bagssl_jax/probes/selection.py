"""How a probe comes by its settings and its score: the one way that all probes go."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from bagssl_jax.probes.classifiers import Classifier
from bagssl_jax.probes.labels import held_out
from bagssl_jax.probes.scores import Score, score
from bagssl_jax.probes.splits import Splits


@dataclasses.dataclass(frozen=True)
class Probed:
    """A scored probe. Settings are named tuples of the probe's own."""

    score: Score  # of the test split
    chosen: Any  # the setting that scored so
    validation: dict[Any, float]  # held-out top-1 by setting; empty where none could be held out
    classifier: Classifier | None  # of the chosen setting; None where the probe is not linear
    fixed: Score | None  # of the test split with the probe's fixed setting; None without one

    @property
    def top1(self) -> float:
        return self.score.top1

    @property
    def top5(self) -> float | None:
        return self.score.top5


class Fitted(Protocol):
    """What a probe learned from some of the training rows, with each of several settings."""

    @property
    def classifier(self) -> Classifier | None:
        """Of the first setting; None where the probe is no linear classifier."""

    def ranks(self, x: np.ndarray, y: np.ndarray, used: np.ndarray) -> dict[Any, np.ndarray]:
        """By setting, in their order, the ranks int [m] of the labels of the rows `used`.

        Args:
          x: float32 [n d].
          y: int [n].
          used: bool [n], m of them.
        """


def choose_and_score(
    splits: Splits,
    grid: Sequence[Any],
    fit: Callable[[np.ndarray, Sequence[Any]], Fitted],
    *,
    num_classes: int,
    holdout: float,
    fixed: Any = None,
) -> Probed:
    """Chooses a setting inside the training split, refits on all of it, scores the test split once.

    Held out is the last `holdout` share of each class: see `labels.held_out`. The setting with
    the best held-out top-1 is chosen. Where every class has one example none can be held out: all
    settings are equal, and `fixed` is taken, or without it the first of the grid.

    Args:
      splits: what is learned from and scored.
      grid: settings, named tuples; of equally good ones the earlier is taken.
      fit: of training rows, bool [n], and settings.
      num_classes: c.
      holdout: share of each class that selects, in (0, 1); 0 where there is nothing to select.
      fixed: a setting that is scored beside the chosen one.

    Raises:
      ValueError: an unusable holdout.
    """
    train_x, train_y, test_x, test_y = splits
    held = held_out(train_y, holdout) if holdout else np.zeros(len(train_y), bool)
    chosen, validation = fixed or grid[0], {}
    if held.any():
        found = fit(~held, grid).ranks(train_x, train_y, held)
        validation = {setting: float((rank < 1).mean()) for setting, rank in found.items()}
        chosen = max(validation, key=validation.get)  # the first of the best

    everything = np.ones(len(train_y), bool)
    fitted = fit(everything, [chosen] if fixed in (None, chosen) else [chosen, fixed])
    found = fitted.ranks(test_x, test_y, np.ones(len(test_y), bool))
    scores = {setting: score(rank, test_y, num_classes) for setting, rank in found.items()}
    return Probed(scores[chosen], chosen, validation, fitted.classifier, scores.get(fixed))
