"""What a probe's settings may be."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from bagssl_jax.data.pipeline import ON_ERROR
from bagssl_jax.embedding.bags import AGGREGATIONS
from bagssl_jax.errors import InputError, check_known
from bagssl_jax.evaluation import robustness
from bagssl_jax.evaluation.scoring import PROBES, check_labels
from bagssl_jax.parallel import check_batch_size, make_mesh

ENCODERS = ('trained', 'untrained')
VIEWS = ('bag', 'center', 'whole')


def check_settings(config: ConfigDict) -> None:
    """Raises InputError for a setting of `probe`, or of `data`, that no probe can have."""
    probe = config.probe
    check_batch_size(probe.batch_size, make_mesh(), 'probe.batch_size')
    hidden = [f'hidden{i}' for i in range(1, len(config.projector.widths))]
    spaces = ('h', *hidden, 'z') if config.projector.widths else ('h',)
    for key, known in (
        ('encoders', ENCODERS),
        ('views', VIEWS),
        ('spaces', spaces),
        ('aggregations', AGGREGATIONS),
        ('probes', tuple(PROBES)),
    ):
        _check_words(key, probe[key], known)
    if not probe.labels:
        raise InputError('probe.labels is empty: give one or more, such as all')
    check_known('data.on_error', config.data.on_error, ON_ERROR)
    check_known('probe.positions', probe.positions, ('grid', 'random'))
    for labels in probe.labels:
        check_labels(labels)
    robustness.check_settings(probe)
    if probe.augment and probe.robustness:
        raise InputError('probe.robustness is of patches as they are: give probe.augment=False')
    if 'sgd_augmented' in probe.probes and 'center' not in probe.views:
        raise InputError('probe.probes=sgd_augmented needs probe.views=center, its test images')
    pairs = 'bag' in probe.views and max(probe.patches) > 1
    if 'alignment' in probe.probes and not (pairs and 'mean_unit' in probe.aggregations):
        raise InputError(
            'probe.probes=alignment needs probe.aggregations=mean_unit, and bags of 2 or more'
        )


def _check_words(key: str, words: Sequence[str], known: Sequence[str]) -> None:
    if not words:
        raise InputError(f'probe.{key} is empty: give one or more')
    for word in words:
        check_known(f'probe.{key}', word, known)
