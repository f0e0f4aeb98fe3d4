"""The rows of a gallery that are nearest to each query, by cosine: exact, on many devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from bagssl_jax.errors import InputError
from bagssl_jax.parallel import DATA_AXIS, batch_sharded, make_mesh, to_global
from bagssl_jax.probes.memory import device_bytes
from bagssl_jax.probes.rows import slices, unit_rows

CHUNK = 2048  # rows of a gallery, and queries, at a time


class Gallery:
    """Rows of features that the devices of a mesh share, and the search among them.

    In memory are the rows, once over all devices, and on each device [chunk chunk] cosines.

    Args:
      x: float32 [n d], finite; may be a numpy.memmap.
      chunk: rows of the gallery, and queries, at a time.
      mesh: the devices that share the rows; by default all there are.

    Raises:
      InputError: the rows do not fit into the devices' memory.
    """

    def __init__(self, x: np.ndarray, *, chunk: int = CHUNK, mesh: Mesh | None = None):
        self._chunk, self._mesh = chunk, mesh or make_mesh()
        self._rows, self._length = blocks(len(x), chunk, self._mesh)
        each = self._length // self._mesh.size
        needed, limit = 4 * each * x.shape[1], device_bytes() * 9 // 10
        if needed > limit:
            raise InputError(
                f'kNN among {len(x):,} x {x.shape[1]} features needs {needed / 1e9:.0f} GB on each '
                f'of {self._mesh.size} devices, of {limit / 1e9:.0f} there are: take more devices, '
                'or leave kNN out'
            )

        def part(index):
            start, stop, _ = index[0].indices(self._length)
            result = np.zeros((stop - start, x.shape[1]), np.float32)
            for rows in slices(max(0, min(stop, len(x)) - start)):
                result[rows] = unit_rows(x[start + rows.start : start + rows.stop])
            return result

        self._gallery = jax.make_array_from_callback(
            (self._length, x.shape[1]), batch_sharded(self._mesh), part
        )

    def nearest(
        self, queries: np.ndarray, used: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cosines float32 [q k] and numbers int32 [q k] of the nearest rows, nearest first.

        Of equally near rows the earlier one is taken. A zero row has cosine 0 with every row.

        Args:
          queries: float32 [q d], q >= 1, of any lengths.
          used: bool [n], the rows to search among.
          k: between 1 and the number of rows that are used.

        Raises:
          ValueError: no such k.
        """
        if not 1 <= k <= used.sum():
            raise ValueError(f'{k=} neighbours among {used.sum()} rows')
        mask = np.pad(used, (0, self._length - len(used)))
        mask = jax.make_array_from_callback(mask.shape, batch_sharded(self._mesh), mask.__getitem__)
        size = min(self._chunk, len(queries))
        cosines, numbers = [], []
        for rows in slices(len(queries), size):
            block = np.resize(queries[rows], (size, queries.shape[1]))  # repeats rows to fill it
            block = to_global(unit_rows(block), self._mesh)
            found = search(block, self._gallery, mask, k=k, rows=self._rows, mesh=self._mesh)
            for parts, array in zip((cosines, numbers), found, strict=True):
                parts.append(np.asarray(array)[: rows.stop - rows.start])
        return np.concatenate(cosines), np.concatenate(numbers)


def blocks(count: int, chunk: int, mesh: Mesh) -> tuple[int, int]:
    """Rows that a device looks at at a time, and of the gallery, to which zeros fill up `count`."""
    each = -(-count // mesh.size)
    rows = min(chunk, each)
    return rows, -(-each // rows) * rows * mesh.size


@functools.partial(jax.jit, static_argnames=('k', 'rows', 'mesh'))
def search(
    queries: jax.Array, gallery: jax.Array, used: jax.Array, *, k: int, rows: int, mesh: Mesh
) -> tuple[jax.Array, jax.Array]:
    """Cosines float32 [q k] and numbers int32 [q k] of the nearest used rows, nearest first.

    Args:
      queries: float32 [q d], of unit length, on every device.
      gallery: float32 [n d], of unit length, shared by the devices in equal parts.
      used: bool [n], k of them or more, shared likewise.
      k: neighbours.
      rows: those of its part that a device looks at at a time; they divide it.
      mesh: the devices.
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
