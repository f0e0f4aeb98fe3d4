"""Compiled programs: how long they take to compile, and the memory that they need."""

import resource
import time
from collections.abc import Sequence
from typing import Any

import jax

from bagssl_jax.errors import InputError, out_of_memory
from bagssl_jax.memory import program_bytes
from bagssl_jax.progress import waiting


def compile_program(lowered: jax.stages.Lowered, what: str) -> tuple[jax.stages.Compiled, float]:
    """The program, and the seconds that compiling it took.

    Args:
      lowered: what to compile.
      what: it is, for the error.

    Raises:
      InputError: it does not fit into the devices' memory.
    """
    start = time.perf_counter()
    try:
        with waiting(f'compiling {what}'):
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if shortage := out_of_memory(error):
            raise InputError(f'{what}: {shortage}') from None
        raise
    return compiled, time.perf_counter() - start


def peak_memory(compiled: jax.stages.Compiled, devices: Sequence[jax.Device]) -> dict[str, Any]:
    """The memory of a program that has run.

    Returns:
      'peak_gib', of the device that used most; 'peak_of', 'process' where the device counts it,
      since this process began, or 'program' where the compiler has to tell. On CPUs also
      'resident_gib', the most that this process has had in memory at once.
    """
    counted = [stats for device in devices if (stats := device.memory_stats())]
    counted = [stats['peak_bytes_in_use'] for stats in counted if 'peak_bytes_in_use' in stats]
    platform = devices[0].platform
    peak = max(counted) if counted else program_bytes(compiled, platform)
    found = {'peak_gib': peak / 2**30, 'peak_of': 'process' if counted else 'program'}
    if platform == 'cpu':
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux
        found['resident_gib'] = resident / 2**20
    return found
