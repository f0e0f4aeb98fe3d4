"""What a probe's settings may be."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from bagssl_jax.data.pipeline import ON_ERROR
from bagssl_jax.embedding.bags import AGGREGATIONS
from bagssl_jax.errors import InputError
from bagssl_jax.evaluation.scoring import PROBES, check_labels
from bagssl_jax.parallel import check_batch_size, make_mesh

VIEWS = ('bag', 'center', 'whole')


def check_settings(config: ConfigDict) -> None:
    """Raises InputError for a setting of `probe`, or of `data`, that no probe can have."""
    probe = config.probe
    check_batch_size(probe.batch_size, make_mesh(), 'probe.batch_size')
    hidden = [f'hidden{i}' for i in range(1, len(config.projector.widths))]
    spaces = ('h', *hidden, 'z') if config.projector.widths else ('h',)
    for key, known in (
        ('views', VIEWS),
        ('spaces', spaces),
        ('aggregations', AGGREGATIONS),
        ('probes', tuple(PROBES)),
    ):
        _check_words(key, probe[key], known)
    if not probe.labels:
        raise InputError('probe.labels is empty: give one or more, such as all')
    if not 0 <= probe.seed < 2**32 or probe.whole_size < 1 or config.data.workers < 0:
        raise InputError(
            f'probe.seed={probe.seed}, probe.whole_size={probe.whole_size} and data.workers='
            f'{config.data.workers} must be at least 0, 1 and 0'
        )
    if config.data.on_error not in ON_ERROR:
        raise InputError(
            f'unknown data.on_error {config.data.on_error!r}: choose from {", ".join(ON_ERROR)}'
        )
    if not probe.patches or min(probe.patches) < 1:
        raise InputError(f'probe.patches={probe.patches} must be one or more positive numbers')
    if probe.positions not in ('grid', 'random'):
        raise InputError(f'unknown probe.positions {probe.positions!r}: choose from grid, random')
    for labels in probe.labels:
        check_labels(labels)
    if 'sgd_augmented' in probe.probes and 'center' not in probe.views:
        raise InputError('probe.probes=sgd_augmented needs probe.views=center, its test images')
    for name in ('sgd', 'sgd_augmented'):
        if probe[name].epochs < 1:
            raise InputError(f'probe.{name}.epochs={probe[name].epochs} must be at least 1')
    pairs = 'bag' in probe.views and max(probe.patches) > 1
    if 'alignment' in probe.probes and not (pairs and 'mean_unit' in probe.aggregations):
        raise InputError(
            'probe.probes=alignment needs probe.aggregations=mean_unit, and bags of 2 or more'
        )


def _check_words(key: str, words: Sequence[str], known: Sequence[str]) -> None:
    if not words:
        raise InputError(f'probe.{key} is empty: give one or more')
    for word in words:
        if word not in known:
            raise InputError(f'unknown probe.{key} {word!r}: choose from {", ".join(known)}')
