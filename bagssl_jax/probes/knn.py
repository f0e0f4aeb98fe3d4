"""The nearest-neighbour probe: weighted kNN on frozen features, over many k and T at once."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from bagssl_jax.probes.nearest import CHUNK, Gallery
from bagssl_jax.probes.rows import slices
from bagssl_jax.probes.scores import Score, ranks, score
from bagssl_jax.probes.selection import Probed, choose_and_score
from bagssl_jax.probes.splits import labelled_splits

# Without a choice: k as DINO's eval_knn.py recommends it, T of Wu et al. 2018.
K, TEMPERATURE = 20, 0.07
# DINO and DINOv2 report 10, 20, 100 and 200; fewer are for small splits, T goes to both sides.
K_GRID = (1, 5, 10, 20, 50, 100, 200)
TEMPERATURE_GRID = (0.02, 0.07, 0.2)


class Setting(NamedTuple):
    """Hyper-parameters of a vote."""

    k: int
    temperature: float


def knn(
    train_x: ArrayLike,
    train_y: ArrayLike,
    test_x: ArrayLike,
    test_y: ArrayLike,
    *,
    num_classes: int,
    k: int = K,
    temperature: float = TEMPERATURE,
    chunk: int = CHUNK,
    mesh: Mesh | None = None,
) -> Score:
    """Scores the test split by the votes of each row's k nearest training rows.

    The nearness s is the cosine, and a neighbour votes for its class with weight exp(s / T)
    (Wu et al. 2018, arXiv 1805.01978, section 3.4). The search is exact; of equally near rows the
    earlier one is taken. A zero row has cosine 0 with every row. Equal votes rank by class. A
    class without a vote is never a prediction, also where fewer than five classes have any.

    Args:
      train_x, test_x: float [n d] and [m d].
      train_y, test_y: integer [n] and [m], in [0, num_classes).
      num_classes: c.
      k: neighbours; all n where n is smaller.
      temperature: T.
      chunk: rows of either split at a time. Beside the features, each device holds [chunk chunk]
        cosines at once, whatever the splits.
      mesh: the devices that share the training rows; by default all there are.

    Raises:
      InputError: features that are not finite.
      ValueError: misaligned shapes, labels out of range, k, chunk or temperature not positive.
    """
    splits = labelled_splits(train_x, train_y, test_x, test_y, num_classes)
    _check_grid((k,), (temperature,), chunk)
    gallery = Gallery(splits.train_x, chunk=chunk, mesh=mesh)
    everything, setting = np.ones(len(splits.train_y), bool), Setting(k, temperature)
    voters = _Voters(gallery, splits.train_y, everything, [setting], num_classes, chunk)
    tested = np.ones(len(splits.test_y), bool)
    [found] = voters.ranks(splits.test_x, splits.test_y, tested).values()
    return score(found, splits.test_y, num_classes)


def fit_knn(
    train_x: ArrayLike,
    train_y: ArrayLike,
    test_x: ArrayLike,
    test_y: ArrayLike,
    *,
    num_classes: int,
    k_grid: Sequence[int] = K_GRID,
    temperature_grid: Sequence[float] = TEMPERATURE_GRID,
    holdout: float = 0.1,
    chunk: int = CHUNK,
    mesh: Mesh | None = None,
) -> Probed:
    """Chooses k and T inside the training split, then scores the test split once, as `knn` does.

    One search, for the largest k, serves every k and T. How they are chosen: see
    `selection.choose_and_score`. Between equals the larger k is taken, then the smaller T. Scored
    beside them, and taken where none can be held out, are k = 20 and T = 0.07: with one example a
    class the nearest row decides, whatever they are.

    Args:
      k_grid, temperature_grid: what to choose from; a k of more rows than there are means all.
      holdout: share of each class that selects, in (0, 1).
      The others are those of `knn`.

    Raises:
      InputError, ValueError: those of `knn`; ValueError also for an unusable holdout.
    """
    splits = labelled_splits(train_x, train_y, test_x, test_y, num_classes)
    _check_grid(k_grid, temperature_grid, chunk)
    gallery = Gallery(splits.train_x, chunk=chunk, mesh=mesh)
    grid = sorted(
        itertools.starmap(Setting, itertools.product(k_grid, temperature_grid)),
        key=lambda setting: (-setting.k, setting.temperature),
    )

    def fit(used, settings):
        return _Voters(gallery, splits.train_y, used, settings, num_classes, chunk)

    return choose_and_score(
        splits,
        grid,
        fit,
        num_classes=num_classes,
        holdout=holdout,
        fixed=Setting(min(K, len(splits.train_y)), TEMPERATURE),
    )


def votes(
    nearness: np.ndarray,
    classes: np.ndarray,
    num_classes: int,
    k_grid: Sequence[int],
    temperature: float,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields each k with the votes, float64 [q c], of the first k neighbours.

    All are divided by the nearest one's, which changes no ranking and cannot overflow.

    Args:
      nearness: float [q k], descending.
      classes: of those neighbours, int [q k], in [0, num_classes).
      num_classes: c.
      k_grid: ascending, none above the k of the arrays.
      temperature: T.
    """
    nearness = nearness.astype(np.float64)
    weights = np.exp((nearness - nearness[:, :1]) / temperature)
    # On the host: a scatter on a GPU adds in an order that changes from run to run.
    cells = np.arange(len(classes))[:, None] * num_classes + classes
    total, done = np.zeros((len(classes), num_classes)), 0
    for k in k_grid:
        added = cells[:, done:k].ravel(), weights[:, done:k].ravel()
        total = total + np.bincount(*added, minlength=total.size).reshape(total.shape)
        yield k, total
        done = k


@dataclasses.dataclass(frozen=True)
class _Voters:
    """The rows of a gallery that vote, and the settings by which they do."""

    gallery: Gallery  # of n rows
    labels: np.ndarray  # int [n]
    used: np.ndarray  # bool [n]
    settings: Sequence[Setting]
    num_classes: int
    chunk: int  # queries whose votes are held at once
    classifier: None = None

    def ranks(self, x, y, used):
        """As `selection.Fitted` has it; a k of more rows than vote becomes their number."""
        if not used.all():
            x, y = x[used], y[used]
        count = int(self.used.sum())
        parts = {Setting(min(k, count), temperature): [] for k, temperature in self.settings}
        k_grid = sorted({setting.k for setting in parts})
        temperatures = sorted({setting.temperature for setting in parts})
        cosines, rows = self.gallery.nearest(x, self.used, k_grid[-1])
        for part in slices(len(y), self.chunk):
            classes = self.labels[rows[part]]
            for temperature in temperatures:
                for k, found in votes(
                    cosines[part], classes, self.num_classes, k_grid, temperature
                ):
                    if (k, temperature) in parts:
                        parts[k, temperature].append(_voted_ranks(found, y[part]))
        return {setting: np.concatenate(of_parts) for setting, of_parts in parts.items()}


def _voted_ranks(votes, labels):
    """Ranks int [m] of the labels; one without a vote comes after every class."""
    voted = votes[np.arange(len(labels)), labels] > 0
    return np.where(voted, ranks(votes, labels), votes.shape[1])


def _check_grid(k_grid, temperature_grid, chunk):
    if not len(k_grid) or not len(temperature_grid):
        raise ValueError(f'nothing to choose from: {k_grid=}, {temperature_grid=}')
    if min(k_grid) < 1 or min(temperature_grid) <= 0 or chunk < 1:
        raise ValueError(f'not positive: {k_grid=}, {temperature_grid=} or {chunk=}')
