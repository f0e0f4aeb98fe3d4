"""The probes by name, and the rows of results.json that they fill."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bagssl_jax.evaluation.knn import fit_knn
from bagssl_jax.evaluation.label_free import rankme, uniformity
from bagssl_jax.evaluation.labels import few, parse_labels
from bagssl_jax.evaluation.linear import fit_linear
from bagssl_jax.evaluation.scores import Score
from bagssl_jax.evaluation.sgd import fit_sgd

Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # train x [n d], y [n], test x, y
ALL = 'all'


def score_all(
    data: Data, shared: Mapping[str, Any], probe: Mapping[str, Any], num_classes: int
) -> list[dict[str, Any]]:
    """The rows of one set of features.

    Args:
      data: features and labels of the training and of the test split.
      shared: what the rows say of the features.
      probe: the configuration's group: `probes`, `labels`, `seed`.
      num_classes: c.
    """
    rows = []
    for labels in probe['labels']:
        chosen = data
        if labels != ALL:
            drawn = few(data[1], **parse_labels(labels), seed=probe['seed'])
            chosen = data[0][drawn], data[1][drawn], *data[2:]
        sizes = {'n_train': len(chosen[1]), 'n_test': len(chosen[3])}
        for name in probe['probes']:
            if name in LABEL_FREE and labels != ALL:
                continue
            for found in PROBES[name](chosen, num_classes):
                rows.append({**shared, 'labels': labels, **found, **sizes})
    return rows


def check_labels(text: str) -> None:
    """Raises InputError for what `probe.labels` cannot hold."""
    if text != ALL:
        parse_labels(text)


def _linear(data: Data, num_classes: int) -> list[dict[str, Any]]:
    found = fit_linear(*data, num_classes=num_classes)
    return [_row('linear', found.score, found.chosen)]


def _sgd(data: Data, num_classes: int) -> list[dict[str, Any]]:
    found = fit_sgd(*data, num_classes=num_classes)
    return [_row('sgd', found.score, found.chosen)]


def _knn(data: Data, num_classes: int) -> list[dict[str, Any]]:
    """With the usual k and temperature, and with those that the training split chooses."""
    found = fit_knn(*data, num_classes=num_classes)
    return [
        _row('knn', found.fixed, {'k': 20, 'temperature': 0.07}),
        _row('knn_chosen', found.score, found.chosen),
    ]


def _rankme(data: Data, num_classes: int) -> list[dict[str, Any]]:
    del num_classes
    return [_value('rankme', rankme(data[0]))]


def _uniformity(data: Data, num_classes: int) -> list[dict[str, Any]]:
    del num_classes
    return [_value('uniformity', uniformity(data[0]))]


def _row(name: str, score: Score, chosen: Mapping[str, float]) -> dict[str, Any]:
    return {
        'probe': name,
        'top1': score.top1,
        'top5': score.top5,
        'interval': score.interval,
        'per_class': score.per_class,
        'chosen': dict(chosen),
    }


def _value(name: str, value: float) -> dict[str, Any]:
    return {'probe': name, 'top1': None, 'top5': None, 'value': value}


LABEL_FREE = ('rankme', 'uniformity')
PROBES: dict[str, Callable[[Data, int], list[dict[str, Any]]]] = {
    'linear': _linear,
    'sgd': _sgd,
    'knn': _knn,
    'rankme': _rankme,
    'uniformity': _uniformity,
}
