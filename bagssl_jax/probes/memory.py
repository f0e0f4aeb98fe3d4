"""The memory that there is for features."""

import jax
import psutil


def device_bytes() -> int:
    """What one device can hold: its allocator's limit; of a CPU, the memory that is free."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and 'bytes_limit' in statistics:
        return statistics['bytes_limit']
    return psutil.virtual_memory().available
