"""Pretrains a patch encoder, and probes it; DIR/report.html shows what came out.

    python -m bagssl_jax.main --config=configs/NAME.py[:ARGUMENT] --workdir=DIR [--config.KEY=VALUE]

The same command again goes on where an interrupted one stopped. bagssl_jax/defaults.py has every
key.
"""

from typing import TYPE_CHECKING

from bagssl_jax import cli
from bagssl_jax.progress import IMPORTING, waiting

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from bagssl_jax.runs import Run


def main(config: 'ConfigDict', run: 'Run') -> None:
    """Trains, probes and looks at what was learned, as configured, and writes the report."""
    with waiting(IMPORTING):
        from bagssl_jax import analysis
        from bagssl_jax.data.datasets import open_dataset
        from bagssl_jax.evaluation.monitor import make_monitor
        from bagssl_jax.evaluation.plan import plan_after_training
        from bagssl_jax.evaluation.protocol import evaluate
        from bagssl_jax.reporting import end_with_report
        from bagssl_jax.tracking import make_tracker
        from bagssl_jax.training.loop import train

    with make_tracker(config.to_dict(), run) as tracker:
        dataset = open_dataset(config.data)
        # Before hours of training are spent: whatever the probes and the monitor refuse.
        plan = plan_after_training(config, dataset)
        monitor = make_monitor(config, dataset) if config.train.monitor_every else None
        analysis.check_after_training(config)
        train(config, run, dataset, monitor, tracker)
        if plan is not None:
            evaluate(plan, run)
        analysis.after_training(config, run, dataset)
        end_with_report(run)
        tracker.conclude()


if __name__ == '__main__':
    cli.run(
        main,
        __doc__,
        outlook='the same command goes on from what is saved',
        config_file=True,
        together=True,
    )
