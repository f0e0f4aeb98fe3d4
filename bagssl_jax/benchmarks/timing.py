"""What the benchmarks share: clocks, and the lines that they print."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import psutil


def clocked(advance: Callable[[], Any], *, warm: int, steps: int) -> np.ndarray:
    """Seconds that each of some steps takes where, as in training, two are under way.

    The host starts a step while the devices are at the one before, and waits for the end of that
    one. So a step's time is the time between two such ends.

    Args:
      advance: starts a step and returns what it will give, arrays that the next does not donate.
      warm: steps before the first that counts.
      steps: that count.

    Returns:
      float64 [steps].
    """
    under_way, ends = None, []
    for _ in range(warm + steps + 1):
        started = advance()
        jax.block_until_ready(under_way)
        ends.append(time.perf_counter())
        under_way = started
    jax.block_until_ready(under_way)
    return np.diff(ends)[warm:]


def summary(seconds: np.ndarray) -> dict[str, Any]:
    """'seconds', the median of some steps' times, and 'quartiles', the first and the third."""
    first, median, third = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
    return {'seconds': median, 'quartiles': [first, third]}


def core_seconds() -> float:
    """Seconds of processor time that this process and those it started have used."""
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def print_row(what: str, stage: str, row: Mapping[str, Any]) -> None:
    """Prints what was found of a stage of a benchmark: one JSON object, numbers to four digits."""
    print(json.dumps({'what': what, 'stage': stage, **_rounded(row)}), flush=True)


def _rounded(value: Any) -> Any:
    """Numbers to four digits, also in groups; whole numbers as they are."""
    if isinstance(value, Mapping):
        return {key: _rounded(below) for key, below in value.items()}
    if isinstance(value, list):
        return list(map(_rounded, value))
    return float(f'{value:.4g}') if isinstance(value, float) else value
