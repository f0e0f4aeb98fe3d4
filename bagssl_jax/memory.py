"""The memory that a program needs, and that there is for it, known before it begins."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import psutil

from bagssl_jax.errors import InputError, memory_shortage


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays in a tree, or of their shapes, each counted once."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def program_bytes(compiled: jax.stages.Compiled, platform: str) -> int:
    """Bytes of a device's memory that a program takes at most, by the compiler's account."""
    memory = compiled.memory_analysis()
    if platform != 'cpu':
        return memory.peak_memory_in_bytes
    # Whose peak lacks the temporaries.
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return held - memory.alias_size_in_bytes + memory.temp_size_in_bytes


def host_bytes() -> float:
    """Bytes that this process can still take on this host.

    What is free or can be freed, and swap; no more than the limits of its control groups leave,
    which are a container's.
    """
    free = psutil.virtual_memory().available + psutil.swap_memory().free
    return min([free, *map(left_in_group, _groups())])


def free_memory(device: jax.Device) -> float:
    """Bytes that a device of this process says are free; infinite where it does not say."""
    stats = device.memory_stats() or {}  # of a CPU there are none
    return stats.get('bytes_limit', math.inf) - stats.get('bytes_in_use', 0)


def refuse_shortage(
    what: str,
    *,
    on_device: Mapping[str, int],
    on_host: Mapping[str, int],
    devices: Sequence[jax.Device],
    held: int = 0,
) -> None:
    """Raises InputError, in one line, where there is less memory than is needed.

    Args:
      what: needs it.
      on_device: name of a part -> bytes that each device needs for it.
      on_host: name of a part -> bytes that this process needs for it, beside its devices.
      devices: of this process; CPUs have the host's memory.
      held: bytes of `on_device` that each device holds already.
    """
    are_cpus = devices[0].platform == 'cpu'
    if are_cpus:
        on_host = {name: size * len(devices) for name, size in on_device.items()} | dict(on_host)
    else:
        free = [free_memory(device) for device in devices]
        _refuse(what, on_device, min(free) + held, 'of a device')
    _refuse(what, on_host, host_bytes() + held * len(devices) * are_cpus, 'that are free here')


def _refuse(what: str, parts: Mapping[str, int], available: float, place: str) -> None:
    needed = sum(parts.values())
    if needed > available:
        sizes = {name: f'{size / 2**30:.2f}' for name, size in parts.items()}
        listed = ', '.join(f'{name} {size}' for name, size in sizes.items() if float(size))
        raise InputError(
            f'{what} ({listed or "a little"}): {memory_shortage(needed, available, place)}'
        )


def left_in_group(group: pathlib.Path) -> float:
    """Bytes that a Linux control group leaves of its limit; infinite where it has none.

    Args:
      group: its directory, with the files of version 2 or 1.
    """
    for limit, usage, cache in (
        ('memory.max', 'memory.current', 'inactive_file'),
        ('memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_inactive_file'),
    ):
        try:
            most, used = (int((group / name).read_text()) for name in (limit, usage))
            counts = dict(line.split() for line in (group / 'memory.stat').read_text().splitlines())
        except (OSError, ValueError):  # no such file, or 'max': no limit
            continue
        # Files that are cached count as used, but give way.
        return most - used + int(counts.get(cache, 0))
    return math.inf


def _groups() -> list[pathlib.Path]:
    """Where the memory of this process's control groups is told, from its own upwards."""
    root = pathlib.Path('/sys/fs/cgroup')
    places = []
    try:
        lines = pathlib.Path('/proc/self/cgroup').read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, kinds, path = line.split(':', 2)
        if kinds in ('', 'memory'):
            top = root / kinds
            own = top / path.lstrip('/')
            # In a container, its own group lies at the top, and the path is of the host's.
            places += [group for group in (own, *own.parents) if group.is_relative_to(top)]
    return places
