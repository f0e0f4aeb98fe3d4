"""Probes the newest checkpoint of a training: linear classifiers and kNN on bags of patches.

    python -m bagssl_jax.probe --workdir=DIR [--config.KEY=VALUE ...]

The configuration is the training's own, from DIR/config.json; the keys of config.probe and
config.data may be overridden. Prints a table; writes DIR/results.json and DIR/figures/.
"""

from bagssl_jax import cli
from bagssl_jax.evaluation.protocol import evaluate

if __name__ == '__main__':
    cli.run(evaluate, __doc__, config_file=False)
