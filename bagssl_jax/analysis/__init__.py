"""Looks into what was learned: each analysis by its name."""

from ml_collections import ConfigDict

from bagssl_jax.analysis import cooccurrence
from bagssl_jax.errors import InputError

ANALYSES = {'cooccurrence': cooccurrence.run}


def analyze(config: ConfigDict, workdir: str, what: str) -> None:
    """Runs the analysis `what` on the newest checkpoint in `workdir`.

    Raises:
      InputError: an unknown name, or what the analysis itself refuses.
    """
    if what not in ANALYSES:
        raise InputError(f'unknown --what={what}: choose from {", ".join(ANALYSES)}')
    ANALYSES[what](config, workdir)
