"""Probes the newest checkpoint of a training: linear classifiers and kNN on bags of patches.

    python -m bagssl_jax.probe --workdir=DIR [--config.KEY=VALUE ...]

The configuration is the training's own, from DIR/config.json; the keys of config.probe and
config.data may be overridden. Prints a table; writes DIR/results.json, DIR/figures/ and
DIR/report.html.
"""

from typing import TYPE_CHECKING

from bagssl_jax import cli
from bagssl_jax.progress import IMPORTING, waiting

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from bagssl_jax.runs import Run


def probe(config: 'ConfigDict', run: 'Run') -> None:
    """Probes `run` as `config` says."""
    with waiting(IMPORTING):
        from bagssl_jax.data.datasets import open_dataset
        from bagssl_jax.evaluation.plan import make_plan
        from bagssl_jax.evaluation.protocol import evaluate
        from bagssl_jax.reporting import end_with_report
        from bagssl_jax.tracking import make_tracker

    evaluate(make_plan(config, open_dataset(config.data)), run)
    end_with_report(run)
    with make_tracker(config.to_dict(), run, is_needed=False) as tracker:
        tracker.conclude()


if __name__ == '__main__':
    cli.run(
        probe,
        __doc__,
        outlook='results.json has what was finished; the same command starts anew',
        config_file=False,
        together=True,
    )
