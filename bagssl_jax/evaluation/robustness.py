"""How linear probes stand perturbed test images: the kinds by name, and the rows that they fill.

The perturbed images are a part of the test split. The heads are those of the linear probe, learned
from clean training images; nothing is chosen by what comes out.
"""

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tqdm
from ml_collections import ConfigDict

from bagssl_jax import processes
from bagssl_jax.data.corruptions import CORRUPTIONS
from bagssl_jax.errors import InputError, check_known
from bagssl_jax.evaluation import adversarial, corrupted
from bagssl_jax.evaluation.heads import Head, Outcome, Trial
from bagssl_jax.evaluation.scoring import ALL
from bagssl_jax.parallel import check_batch_size, make_mesh

# Each takes what heads are tried on, those of one pass, and a progress bar of images; further its
# own settings.
ROBUSTNESS: dict[str, Callable[..., Iterator[list[Outcome]]]] = {
    'pgd': adversarial.measure,
    'corruptions': corrupted.measure,
}


def check_settings(probe: ConfigDict) -> None:
    """Raises InputError for settings of `probe` that no measure of robustness can have."""
    for name in probe.robustness:
        check_known('probe.robustness', name, ROBUSTNESS)
    if not probe.robustness:
        return
    if 'linear' not in probe.probes or ALL not in probe.labels:
        raise InputError('probe.robustness needs probe.probes=linear, of probe.labels=all')
    if 'pgd' in probe.robustness:
        check_batch_size(probe.pgd.batch_size, make_mesh(), 'probe.pgd.batch_size')
        if not probe.pgd.linf and not probe.pgd.l2:
            raise InputError('probe.pgd.linf and probe.pgd.l2 are both empty: give a radius')
    if 'corruptions' in probe.robustness:
        if not probe.corruptions.names:
            raise InputError('probe.corruptions.names is empty: give one or more')
        for name in probe.corruptions.names:
            check_known('probe.corruptions.names', name, CORRUPTIONS)


def measure(
    kinds: Mapping[str, Mapping[str, Any]], trial: Trial, heads: Sequence[Head]
) -> Iterator[list[Outcome]]:
    """The outcomes of each kind, by passes or heads, one after the other.

    Args:
      kinds: names of `ROBUSTNESS`, with the settings of each.
      trial: what the heads are tried on.
      heads: of one pass after the other.

    Raises:
      InputError: an image cannot be read, or there is too little memory.
    """
    for name, settings in kinds.items():
        for view, of_pass in itertools.groupby(heads, lambda head: head.one.view):
            with tqdm.tqdm(
                desc=f'{name}, {view}',
                unit=' images',
                file=sys.stderr,
                disable=not processes.is_first(),
            ) as progress:
                yield from ROBUSTNESS[name](trial, list(of_pass), progress, **settings)
