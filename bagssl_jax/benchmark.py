"""Measures how fast a configuration's parts run here. Prints one JSON object a line.

    python -m bagssl_jax.benchmark WHAT --config=configs/NAME.py[:ARGUMENT] [--config.KEY=VALUE ...]
    python -m bagssl_jax.benchmark compile --topology=v5e:2x4 --config=...

WHAT is one of these:

`train`: the training step alone, and with the pipeline that feeds it; nothing is written.

`embed`: a frozen encoder's forward pass alone, and from the data set's images to embeddings.

`probe`: embedding for the probes, and each probe on made-up features of the data set's size.

`data`: the input pipeline, stage by stage and end to end, beside the training step and a Pillow
pipeline that makes one patch at a time.

`compile`: what the compiler says of the training step and the frozen encoder: memory, operations,
what is sent between devices, and what follows from them for time and cost. With --topology for a
TPU slice that is not there (v4:2x2x2, v5e:16x16, v5p:4x4x4, v6e:2x4), else for the devices at hand.
It takes no data and makes no parameters.
"""

from typing import TYPE_CHECKING

from bagssl_jax import cli
from bagssl_jax.progress import IMPORTING, waiting

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def measure(config: 'ConfigDict', what: str, topology: str) -> None:
    """Measures `what`."""
    with waiting(IMPORTING):
        from bagssl_jax.benchmarks import benchmark

    benchmark(config, what, topology)


if __name__ == '__main__':
    cli.run(
        measure,
        __doc__,
        outlook='what was measured is printed; the same command starts anew',
        config_file=True,
        words=('what',),
        workdir=False,
        extra_flags=('topology',),
    )
