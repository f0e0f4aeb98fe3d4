"""Pretrains a patch encoder, and probes it.

    python -m bagssl_jax.main --config=configs/NAME.py[:ARGUMENT] --workdir=DIR [--config.KEY=VALUE]

The same command again goes on where an interrupted one stopped. Every key is in
bagssl_jax/defaults.py.
"""

from ml_collections import ConfigDict

from bagssl_jax import cli
from bagssl_jax.evaluation.monitor import make_monitor
from bagssl_jax.evaluation.protocol import check, evaluate
from bagssl_jax.training.loop import train


def main(config: ConfigDict, workdir: str) -> None:
    """Trains, and then probes unless the configuration says not to."""
    if config.probe.after_training:
        check(config)
    train(config, workdir, make_monitor(config) if config.train.monitor_every else None)
    if config.probe.after_training:
        evaluate(config, workdir)


if __name__ == '__main__':
    cli.run(main, __doc__, config_file=True)
