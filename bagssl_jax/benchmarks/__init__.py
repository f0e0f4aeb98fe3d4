"""Measurements of speed, by name."""

from ml_collections import ConfigDict

from bagssl_jax.benchmarks import compile, data, embed, probe, train
from bagssl_jax.errors import InputError, check_known

BENCHMARKS = {
    'compile': compile.run,
    'data': data.run,
    'embed': embed.run,
    'probe': probe.run,
    'train': train.run,
}


def benchmark(config: ConfigDict, what: str, topology: str = '') -> None:
    """Runs the benchmark of that name, which prints one JSON object a line.

    Args:
      config: the configuration.
      what: one of `BENCHMARKS`.
      topology: what 'compile' compiles for, in the place of `benchmark.compile.topology`.

    Raises:
      InputError: an unknown name, or a configuration that cannot be carried out.
    """
    check_known('benchmark', what, BENCHMARKS)
    if topology and what != 'compile':
        raise InputError(f'--topology={topology} is of compile alone: {what} runs on what is here')
    if topology:
        config.benchmark.compile.topology = topology
    BENCHMARKS[what](config)
