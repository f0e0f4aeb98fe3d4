"""The data mesh: which devices share a batch, and sums that run over all of them."""

import collections
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bagssl_jax.errors import InputError

DATA_AXIS = 'data'
Tree = TypeVar('Tree')
Note = TypeVar('Note')


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A one-dimensional mesh over `devices` (default: every device of every process).

    Raises:
      InputError: the processes have different numbers of devices.
    """
    if devices is None:
        # In the order of their processes, whose parts of a batch then are consecutive.
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        each = len(devices) // jax.process_count()
        if any(d.process_index != i // each for i, d in enumerate(devices)):
            raise InputError(
                f'{jax.process_count()} processes with {len(devices)} devices in all must have the '
                'same number each'
            )
    # Auto axes: with the Explicit ones of jax.make_mesh, z.T @ z over a sharded batch is an error.
    return Mesh(np.asarray(devices), (DATA_AXIS,), axis_types=(jax.sharding.AxisType.Auto,))


def local_mesh() -> Mesh:
    """The mesh of this process's own devices."""
    return make_mesh(jax.local_devices())


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """Devices hold equal, consecutive parts of the leading axis."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def stack_sharded(mesh: Mesh) -> NamedSharding:
    """Devices hold equal, consecutive parts of the second axis: batches one after the other."""
    return NamedSharding(mesh, PartitionSpec(None, DATA_AXIS))


def sharded_shapes(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """The shapes of a tree of arrays that lie in one way: what restoring and compiling take."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def check_batch_size(batch_size: int, mesh: Mesh, key: str) -> None:
    """Raises InputError, naming the config `key`, when the devices do not divide the batch."""
    if batch_size < 1 or batch_size % mesh.size:
        raise InputError(
            f'{key}={batch_size} cannot be shared by {mesh.size} devices: give a positive '
            f'multiple of {mesh.size}'
        )


def prefetch_to_devices(
    batches: Iterable[tuple[Tree, Note]], sharding: NamedSharding, ahead: int = 2
) -> Iterator[tuple[Tree, Note]]:
    """Yields global arrays, with the copies of the next `ahead` batches already under way.

    Args:
      batches: trees of this process's parts of global arrays, in the order of `sharding`, each
        with a note that stays on the host.
      sharding: of every array.
      ahead: batches.
    """
    waiting = collections.deque()
    for arrays, note in batches:
        waiting.append((global_arrays(arrays, sharding), note))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


def global_arrays(arrays: Tree, sharding: NamedSharding) -> Tree:
    """Starts copying this process's parts of global arrays to the devices."""
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(sharding, array), arrays
    )


def introduce(mesh: Mesh) -> None:
    """Lets all devices of `mesh` speak with each other, a first time.

    CPUs give each other half a minute for that: less than one process can need more than another
    to compile a first step.
    """
    ones = jax.make_array_from_callback(
        (mesh.size,), batch_sharded(mesh), lambda index: np.ones(1, np.int32)
    )
    jax.block_until_ready(jax.jit(jnp.sum, out_shardings=replicated(mesh))(ones))


def own_part(count: int) -> int:
    """Of so many things that all processes do together, those that each does, rounded up."""
    return -(-count // jax.process_count())


def dealt(count: int, batch_size: int) -> np.ndarray:
    """The numbers, of `count`, that this process takes: int [n].

    Of every `batch_size`, each process takes consecutive ones, in the order of the processes.
    """
    numbers = np.arange(count)
    return numbers[numbers // own_part(batch_size) % jax.process_count() == jax.process_index()]


def all_rows(tree: Tree) -> Tree:
    """Arrays [n ...] of every process, one behind the other on the host: [processes * n ...]."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def to_global(tree: Tree, mesh: Mesh) -> Tree:
    """Arrays that every process has alike, on every device of `mesh`."""
    sharding = replicated(mesh)

    def placed(x):
        parts = [jax.device_put(x, device) for device in mesh.local_mesh.devices.flat]
        return jax.make_array_from_single_device_arrays(np.shape(x), sharding, parts)

    return jax.tree.map(placed, tree)


def to_local(tree: Tree) -> Tree:
    """Arrays on all devices of all processes, as arrays on this one's; nothing is copied."""
    sharding = replicated(local_mesh())

    def own(x):
        parts = {shard.device: shard.data for shard in x.addressable_shards}
        parts = [parts[device] for device in sharding.mesh.devices.flat]
        return jax.make_array_from_single_device_arrays(x.shape, sharding, parts)

    return jax.tree.map(own, tree)


def sum_over(x: Any, axis_name: str | None) -> Any:
    """Sum over the devices of `axis_name`; the identity where there is no such axis (None)."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def mean_over(x: Any, axis_name: str | None) -> Any:
    """Mean over the devices of `axis_name`; the identity where there is no such axis (None)."""
    return x if axis_name is None else jax.lax.pmean(x, axis_name)


def axis_size(axis_name: str | None) -> int:
    """Number of devices along `axis_name`; one where there is no such axis (None)."""
    return 1 if axis_name is None else jax.lax.axis_size(axis_name)
