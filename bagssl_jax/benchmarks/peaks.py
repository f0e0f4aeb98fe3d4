"""What accelerators can do at most, by the makers' data sheets."""

from collections.abc import Sequence
from typing import NamedTuple

import jax


class Peaks(NamedTuple):
    """Of one device; None where the maker does not say.

    Attributes:
      operations: floating-point operations a second, in bfloat16.
      bandwidth: bytes a second between the device and its memory.
      memory: bytes.
      links: bytes a second that it can send to other devices over all links together.
    """

    operations: float
    bandwidth: float
    memory: float
    links: float | None


# A chip by `device_kind`, from cloud.google.com/tpu/docs/v4, v5e, v5p and v6e (read in November
# 2026). They give the links of both directions together; one direction is half.
PEAKS = {
    'TPU v4': Peaks(275e12, 1200e9, 32 * 2**30, None),
    'TPU v5 lite': Peaks(197e12, 819e9, 16 * 2**30, 400e9 / 2),  # v5e
    'TPU v5': Peaks(459e12, 2765e9, 95 * 2**30, 1200e9 / 2),  # v5p
    'TPU v6 lite': Peaks(918e12, 1638e9, 32 * 2**30, 800e9 / 2),  # v6e
}


def device_peaks(devices: Sequence[jax.Device]) -> Peaks | None:
    """Those of each of some devices of one kind; None where the table does not have it.

    The compiler without a chip has v4's two cores as two devices, with half a chip's peaks each.
    """
    peaks = PEAKS.get(devices[0].device_kind)
    if peaks is None:
        return None
    cores = 1 + max(getattr(device, 'core_on_chip', 0) for device in devices)
    return Peaks(*(None if peak is None else peak / cores for peak in peaks))
