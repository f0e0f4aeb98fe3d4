"""Looks into what a run has learned: numbers and pictures of its newest checkpoint.

    python -m bagssl_jax.analyze --workdir=DIR [--what=NAME,NAME] [--images=FOLDER]

  --what      the looks to take; if not given, all that apply but those marked *
  --images    a folder of photographs to look at, of any layout, without labels; if not given, the
              images that the run was trained on. An imported encoder has none

  convergence     how near the mean of 1 to 256 patches is to the whole image's embedding, against
                  other images and an untrained encoder
  neighbours      the patches that are nearest to a patch in h and in z, and how many of them are of
                  its image and of its class
  locality        how alike a patch and the places around it are: by distance, and as heat maps
  map             patches where their embeddings lie in the plane, and the places of photographs
                  coloured by their embeddings; needs scikit-learn (pip install '.[analysis]')
  scales *        accuracy against the size of patches and their number, of a sample of a labelled
                  data set. Takes minutes
  aggregation *   accuracy of a center crop, the whole image, and several ways to make one vector of
                  a bag of patches; likewise
  cooccurrence *  how closely inner products of z follow how often patches occur together: in a
                  small world whose truth is known, and on patches of the images. Takes a minute or
                  more; needs scikit-learn (pip install '.[analysis]') and a projector

Adds to DIR/analysis.json, and writes DIR/figures/NAME_*.png and DIR/report.html. Images of several
sizes are resized to cover a square of config.probe.whole_size pixels. The configuration is the
run's own; config.analysis, config.probe and config.data may be overridden by --config.KEY=VALUE.
"""

from typing import TYPE_CHECKING

from bagssl_jax import cli
from bagssl_jax.progress import IMPORTING, waiting

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from bagssl_jax.runs import Run


def look(config: 'ConfigDict', run: 'Run', what: str, images: str) -> None:
    """Takes the looks `what` of `run`, at its own images or those in the folder `images`."""
    with waiting(IMPORTING):
        from bagssl_jax.analysis import analyze
        from bagssl_jax.reporting import end_with_report

    analyze(config, run, what, images)
    end_with_report(run)


if __name__ == '__main__':
    cli.run(
        look,
        __doc__,
        outlook='analysis.json has the looks that were finished; the same command starts anew',
        config_file=False,
        extra_flags=['what', 'images'],
        settable=('analysis', 'probe', 'data'),
        together=True,
    )
