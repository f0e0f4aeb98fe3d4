"""Measures how fast a configuration's parts run here. Prints one JSON object a line.

    python -m bagssl_jax.benchmark data --config=configs/NAME.py[:ARGUMENT] [--config.KEY=VALUE ...]

`data`: the input pipeline, stage by stage and end to end, beside the training step and a Pillow
pipeline that makes one patch at a time.
"""

from bagssl_jax import cli
from bagssl_jax.benchmarks import benchmark

if __name__ == '__main__':
    cli.run(benchmark, __doc__, config_file=True, words=('what',), workdir=False)
