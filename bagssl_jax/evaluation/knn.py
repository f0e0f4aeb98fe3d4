"""The nearest-neighbour probe: weighted kNN on frozen features, exact, over many k and T at once.

What ImageNet takes, 1.28 million gallery rows and 50,000 queries of 2048 dimensions, in float32:
the gallery is 10.5 GB over all devices, a chunk of queries and its cosines 17 + 17 MB on each, the
neighbours 80 MB on the host for k = 200. The products are 2.6e14 operations: 20 s at the 13e12 a
second that are two thirds of an A100's float32 peak, 2.5 s on eight of them, 45 minutes at the
1e11 of two CPU cores. Sorting the 6.4e10 cosines comes on top.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jax.typing import ArrayLike

from bagssl_jax.errors import InputError
from bagssl_jax.evaluation.features import checked_splits, device_bytes, slices, unit_rows
from bagssl_jax.evaluation.labels import held_out
from bagssl_jax.evaluation.scores import Score, ranks, score
from bagssl_jax.parallel import DATA_AXIS, batch_sharded, make_mesh, replicated

# Without a choice: k as DINO's eval_knn.py recommends it, T of Wu et al. 2018.
K, TEMPERATURE = 20, 0.07
# DINO and DINOv2 report 10, 20, 100 and 200; fewer are for small splits, T goes to both sides.
K_GRID = (1, 5, 10, 20, 50, 100, 200)
TEMPERATURE_GRID = (0.02, 0.07, 0.2)


class KnnProbe(NamedTuple):
    """A scored probe."""

    score: Score  # of the test split
    chosen: dict[str, float]  # 'k' and 'temperature'
    validation: dict[tuple[int, float], float]  # held-out top-1; empty where none could be held
    fixed: Score  # of the test split with k = 20 and T = 0.07, from the same search


def knn(
    train_x: ArrayLike,
    train_y: ArrayLike,
    test_x: ArrayLike,
    test_y: ArrayLike,
    *,
    num_classes: int,
    k: int = K,
    temperature: float = TEMPERATURE,
    chunk: int = 2048,
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
    data = _checked(train_x, train_y, test_x, test_y, num_classes, (k,), (temperature,), chunk)
    search = _Search(*data[:2], num_classes, chunk, mesh)
    everything = np.ones(len(data[1]), bool)
    [found] = search.ranks(everything, *data[2:], (k,), (temperature,)).values()
    return score(found, data[3], num_classes)


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
    chunk: int = 2048,
    mesh: Mesh | None = None,
) -> KnnProbe:
    """Chooses k and T inside the training split, then scores the test split once, as `knn` does.

    One search, for the largest k, serves every k and T. The best held-out top-1 wins; between
    equals the larger k, then the smaller T. Held out is the last `holdout` share of each class:
    see `labels.held_out`. Where every class has one example none can be held out, and k = 20 and
    T = 0.07 are taken: there the nearest row decides, whatever they are.

    Args:
      k_grid, temperature_grid: what to choose from; a k of more rows than there are means all.
      holdout: share of each class that selects, in (0, 1).
      The others are those of `knn`.

    Raises:
      InputError, ValueError: those of `knn`; ValueError also for an unusable holdout.
    """
    train_x, train_y, test_x, test_y = _checked(
        train_x, train_y, test_x, test_y, num_classes, k_grid, temperature_grid, chunk
    )
    search = _Search(train_x, train_y, num_classes, chunk, mesh)
    held = held_out(train_y, holdout)
    chosen, validation = (K, TEMPERATURE), {}
    if held.any():
        found = search.ranks(~held, train_x[held], train_y[held], k_grid, temperature_grid)
        validation = {key: float((rank < 1).mean()) for key, rank in found.items()}
        chosen = max(validation, key=lambda key: (validation[key], key[0], -key[1]))

    everything = np.ones(len(train_y), bool)
    count = len(train_y)
    found = search.ranks(
        everything, test_x, test_y, (chosen[0], K), sorted({chosen[1], TEMPERATURE})
    )
    of_chosen, of_fixed = (
        score(found[min(k, count), temperature], test_y, num_classes)
        for k, temperature in (chosen, (K, TEMPERATURE))
    )
    chosen = {'k': min(chosen[0], count), 'temperature': chosen[1]}
    return KnnProbe(of_chosen, chosen, validation, of_fixed)


def _checked(train_x, train_y, test_x, test_y, num_classes, k_grid, temperature_grid, chunk):
    data = checked_splits(train_x, train_y, test_x, test_y, num_classes)
    if not len(k_grid) or not len(temperature_grid):
        raise ValueError(f'nothing to choose from: {k_grid=}, {temperature_grid=}')
    if min(k_grid) < 1 or min(temperature_grid) <= 0 or chunk < 1:
        raise ValueError(f'not positive: {k_grid=}, {temperature_grid=} or {chunk=}')
    return data


class _Search:
    """Training rows of unit length on the devices of a mesh, and the search among them."""

    def __init__(self, x, y, num_classes, chunk, mesh):
        self._labels, self._num_classes, self._chunk = y, num_classes, chunk
        self._mesh = mesh or make_mesh()
        each = -(-len(x) // self._mesh.size)
        self._rows = min(chunk, each)
        each = -(-each // self._rows) * self._rows
        needed, limit = 4 * each * x.shape[1], device_bytes() * 9 // 10
        if needed > limit:
            raise InputError(
                f'kNN among {len(x):,} x {x.shape[1]} features needs {needed / 1e9:.0f} GB on each '
                f'of {self._mesh.size} devices, of {limit / 1e9:.0f} there are: take more devices, '
                'or leave knn out of probe.probes'
            )
        self._length = each * self._mesh.size

        def part(index):
            start, stop, _ = index[0].indices(self._length)
            result = np.zeros((stop - start, x.shape[1]), np.float32)
            for rows in slices(max(0, min(stop, len(x)) - start)):
                result[rows] = unit_rows(x[start + rows.start : start + rows.stop])
            return result

        self._gallery = jax.make_array_from_callback(
            (self._length, x.shape[1]), batch_sharded(self._mesh), part
        )

    def ranks(self, used, queries, labels, k_grid, temperature_grid):
        """(k, T) -> ranks int [m] of the queries' labels, by votes of rows `used`, bool [n]."""
        k_grid = sorted({min(k, int(used.sum())) for k in k_grid})
        mask = np.pad(used, (0, self._length - len(used)))
        mask = jax.make_array_from_callback(mask.shape, batch_sharded(self._mesh), mask.__getitem__)
        size = min(self._chunk, len(queries))
        parts = []
        for rows in slices(len(queries), size):
            block = np.resize(queries[rows], (size, queries.shape[1]))  # repeats rows to fill it
            nearness, index = _nearest(
                jax.device_put(unit_rows(block), replicated(self._mesh)),
                self._gallery,
                mask,
                k=k_grid[-1],
                rows=self._rows,
                mesh=self._mesh,
            )
            count = rows.stop - rows.start
            nearness, index = np.asarray(nearness, np.float64)[:count], np.asarray(index)[:count]
            classes = self._labels[index]
            parts.append(
                {
                    (k, temperature): _voted_ranks(votes, labels[rows])
                    for temperature in temperature_grid
                    for k, votes in _votes(
                        nearness, classes, self._num_classes, k_grid, temperature
                    )
                }
            )
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _voted_ranks(votes, labels):
    voted = votes[np.arange(len(labels)), labels] > 0
    return np.where(voted, ranks(votes, labels), votes.shape[1])


def _votes(nearness, classes, num_classes, k_grid, temperature):
    """Yields each k, ascending, with the votes [q c] of the first k of nearness, classes [q k].

    All are divided by the nearest one's, which changes no ranking and cannot overflow.
    """
    weights = np.exp((nearness - nearness[:, :1]) / temperature)
    # On the host: a scatter on a GPU adds in an order that changes from run to run.
    cells = np.arange(len(classes))[:, None] * num_classes + classes
    votes, done = np.zeros((len(classes), num_classes)), 0
    for k in k_grid:
        added = cells[:, done:k].ravel(), weights[:, done:k].ravel()
        votes = votes + np.bincount(*added, minlength=votes.size).reshape(votes.shape)
        yield k, votes
        done = k


@functools.partial(jax.jit, static_argnames=('k', 'rows', 'mesh'))
def _nearest(queries, gallery, used, *, k, rows, mesh):
    """Cosines and rows [q k] of the nearest of the gallery's rows that are used, nearest first.

    queries [q d] and gallery [n d] have unit rows, which the devices go through `rows` at a time;
    used is bool [n], k of them or more.
    """

    def of_device(queries, gallery, used):
        def merge(best, block):
            start, gallery, used = block
            # TF32 (GPU) and bfloat16 (TPU) products would reorder close neighbours.
            cosines = jnp.matmul(queries, gallery.T, precision=jax.lax.Precision.HIGHEST)
            cosines = jnp.where(used[None], cosines, -jnp.inf)
            cosines, pick = jax.lax.top_k(cosines, min(k, rows))
            # The earlier rows come first, and top_k prefers the first of equals.
            nearness = jnp.concatenate([best[0], cosines], 1)
            return _first(nearness, jnp.concatenate([best[1], start + pick], 1), k), None

        starts = jax.lax.axis_index(DATA_AXIS) * len(gallery) + jnp.arange(0, len(gallery), rows)
        nothing = jnp.full((len(queries), k), -jnp.inf), jnp.zeros((len(queries), k), jnp.int32)
        blocks = starts, gallery.reshape(len(starts), rows, -1), used.reshape(-1, rows)
        best, _ = jax.lax.scan(merge, nothing, blocks)
        return _first(*jax.lax.all_gather(best, DATA_AXIS, axis=1, tiled=True), k)

    sharded, whole = PartitionSpec(DATA_AXIS), PartitionSpec()
    return jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=(whole, sharded, sharded),
        out_specs=(whole, whole),
        check_vma=False,  # the gathered results are the same on all devices, which it cannot see
    )(queries, gallery, used)


def _first(nearness, index, k):
    nearness, pick = jax.lax.top_k(nearness, k)
    return nearness, jnp.take_along_axis(index, pick, 1)
