"""Measurements of speed, by name."""

from ml_collections import ConfigDict

from bagssl_jax.benchmarks import data
from bagssl_jax.errors import InputError

BENCHMARKS = {'data': data.run}


def benchmark(config: ConfigDict, what: str) -> None:
    """Runs the benchmark of that name, which prints one JSON object a line.

    Raises:
      InputError: an unknown name, or a configuration that cannot be carried out.
    """
    if what not in BENCHMARKS:
        raise InputError(f'unknown benchmark {what!r}: choose from {", ".join(BENCHMARKS)}')
    BENCHMARKS[what](config)
