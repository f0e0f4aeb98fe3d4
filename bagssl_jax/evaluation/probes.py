"""The probes by name, and the rows of results.json that they fill."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bagssl_jax.evaluation.knn import fit_knn
from bagssl_jax.evaluation.label_free import alignment, rankme, uniformity
from bagssl_jax.evaluation.labels import few, parse_labels
from bagssl_jax.evaluation.linear import fit_linear
from bagssl_jax.evaluation.scores import Score
from bagssl_jax.evaluation.sgd import Batches, fit_sgd

Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # train x [n d], y [n], test x, y
ALL = 'all'


def score_all(
    data: Data, shared: Mapping[str, Any], probe: Mapping[str, Any], num_classes: int
) -> list[dict[str, Any]]:
    """The rows of one set of features.

    Args:
      data: features and labels of the training and of the test split.
      shared: what the rows say of the features.
      probe: the configuration's group, of which `probes`, `labels`, `sgd` and `seed` count.
      num_classes: c.
    """
    rows = []
    sizes = {'n_test': len(data[3])}
    for labels in probe['labels']:
        chosen = data
        if labels != ALL:
            drawn = few(data[1], **parse_labels(labels), seed=probe['seed'])
            chosen = data[0][drawn], data[1][drawn], *data[2:]
        sizes['n_train'] = len(chosen[1])
        for name in probe['probes']:
            if name in PROBES:
                found = PROBES[name](chosen, probe, num_classes)
                rows += [{**shared, 'labels': labels, **row, **sizes} for row in found]
    sizes['n_train'] = len(data[1])
    for name in probe['probes']:
        if name in LABEL_FREE:
            value = LABEL_FREE[name](data[0], shared)
            if value is not None:
                found = {'labels': ALL, 'probe': name, 'top1': None, 'top5': None, 'value': value}
                rows.append({**shared, **found, **sizes})
    return rows


def sgd_augmented(
    data: Data,
    shared: Mapping[str, Any],
    batches: Batches,
    probe: Mapping[str, Any],
    num_classes: int,
) -> list[dict[str, Any]]:
    """The row of the linear probe that sees fresh random crops in every epoch.

    Args:
      data: features of center crops, and labels.
      shared: what the row says of them.
      batches: as `fit_sgd` takes them.
      probe: the configuration's group, of which `sgd_augmented` and `seed` count.
      num_classes: c.
    """
    found = fit_sgd(
        *data,
        num_classes=num_classes,
        epochs=probe['sgd_augmented']['epochs'],
        seed=probe['seed'],
        augmented=batches,
    )
    sizes = {'n_train': len(data[1]), 'n_test': len(data[3])}
    row = _row('sgd_augmented', found.score, found.chosen)
    return [{**shared, 'labels': ALL, **row, **sizes}]


def check_labels(text: str) -> None:
    """Raises InputError for what `probe.labels` cannot hold."""
    if text != ALL:
        parse_labels(text)


def _linear(data: Data, probe: Mapping[str, Any], num_classes: int) -> list[dict[str, Any]]:
    del probe
    found = fit_linear(*data, num_classes=num_classes)
    return [_row('linear', found.score, found.chosen)]


def _sgd(data: Data, probe: Mapping[str, Any], num_classes: int) -> list[dict[str, Any]]:
    epochs = probe['sgd']['epochs']
    found = fit_sgd(*data, num_classes=num_classes, epochs=epochs, seed=probe['seed'])
    return [_row('sgd', found.score, found.chosen)]


def _knn(data: Data, probe: Mapping[str, Any], num_classes: int) -> list[dict[str, Any]]:
    """With the usual k and temperature, and with those that the training split chooses."""
    del probe
    found = fit_knn(*data, num_classes=num_classes)
    return [
        _row('knn', found.fixed, {'k': 20, 'temperature': 0.07}),
        _row('knn_chosen', found.score, found.chosen),
    ]


def _row(name: str, score: Score, chosen: Mapping[str, float]) -> dict[str, Any]:
    return {
        'probe': name,
        'top1': score.top1,
        'top5': score.top5,
        'interval': score.interval,
        'per_class': score.per_class,
        'chosen': dict(chosen),
    }


def _alignment(features: np.ndarray, shared: Mapping[str, Any]) -> float | None:
    """Of the means of unit vectors, in bags of two patches or more; None for all others."""
    if shared['aggregation'] != 'mean_unit' or shared['patches'] < 2:
        return None
    return alignment(features, shared['patches'])


PROBES: dict[str, Callable[[Data, Mapping[str, Any], int], list[dict[str, Any]]]] = {
    'linear': _linear,
    'sgd': _sgd,
    'knn': _knn,
}
# Of the training split's features.
LABEL_FREE: dict[str, Callable[[np.ndarray, Mapping[str, Any]], float | None]] = {
    'alignment': _alignment,
    'rankme': lambda features, shared: rankme(features),
    'uniformity': lambda features, shared: uniformity(features),
}
