"""Looks into a training: what its newest checkpoint has learned.

    python -m bagssl_jax.analyze --what=cooccurrence --workdir=DIR [--config.KEY=VALUE ...]

--what=cooccurrence runs the theorem that the spectral loss learns which patches occur together: in
a small world whose truth is known, and on the training patches. It writes DIR/cooccurrence.json,
DIR/figures/cooccurrence_known.png and DIR/figures/cooccurrence_patches.png.

The configuration is the training's own; config.analysis, config.probe and config.data may be
overridden.
"""

from typing import TYPE_CHECKING

from bagssl_jax import cli

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from bagssl_jax.runs import Run


def look(config: 'ConfigDict', run: 'Run', what: str) -> None:
    """Looks into `run` by the analysis `what`."""
    from bagssl_jax.analysis import analyze

    analyze(config, run, what)


if __name__ == '__main__':
    cli.run(
        look,
        __doc__,
        outlook='the same command starts anew',
        config_file=False,
        extra_flags=['what'],
        settable=('analysis', 'probe', 'data'),
        together=True,
    )
