"""The rows that the probes fill: which, in which order, and with which settings."""

import json

import numpy as np
import pytest

from bagssl_jax.errors import InputError
from bagssl_jax.evaluation import scoring

SETTINGS = {name: {} for name in scoring.PROBES} | {
    'sgd': {'epochs': 2},
    'sgd_augmented': {'epochs': 3},
}


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    x = (np.eye(3, 5)[labels] + rng.normal(size=(60, 5), scale=0.5)).astype(np.float32)
    return {
        'train_x': x[:30],
        'train_y': labels[:30],
        'test_x': x[30:],
        'test_y': labels[30:],
        'num_classes': 3,
        'seed': 0,
        'about': {'encoder': 'trained', 'aggregation': 'mean', 'patches': 4},
    }


def score(case, names, labels=('all',)):
    chosen = {name: SETTINGS[name] for name in names}
    return [found.row for found in scoring.score_all(scoring.Case(**case), chosen, labels)]


def test_rows_come_by_labels_then_by_name_then_what_takes_all_images(case):
    rows = score(case, ['rankme', 'knn', 'linear'], ['50%', 'all'])
    assert [(row['labels'], row['probe'], row['n_train']) for row in rows] == [
        ('50%', 'knn', 15),
        ('50%', 'knn_chosen', 15),
        ('50%', 'linear', 15),
        ('all', 'knn', 30),
        ('all', 'knn_chosen', 30),
        ('all', 'linear', 30),
        ('all', 'rankme', 30),
    ]
    assert all(row['encoder'] == 'trained' and row['n_test'] == 30 for row in rows)
    assert rows[3]['chosen'] == {'k': 20, 'temperature': 0.07}
    assert rows[5]['chosen'].keys() == {'l2'}
    assert (rows[6]['top1'], rows[6]['top5']) == (None, None)
    json.dumps(rows)
    # Without `all` among the labels too: the measures without labels do not depend on them.
    assert score(case, ['rankme'], ['1']) == rows[6:]


def test_a_probe_that_does_not_apply_has_no_row(case):
    assert score(case, ['alignment', 'sgd_augmented']) == []
    means = {**case['about'], 'aggregation': 'mean_unit'}
    case['train_x'] = case['train_x'] / 5
    [row] = score({**case, 'about': means}, ['alignment'])
    assert (row['probe'], row['labels']) == ('alignment', 'all')
    assert 0 < row['value'] < 4
    assert score({**case, 'about': {**means, 'patches': 1}}, ['alignment']) == []


def test_each_probe_has_settings_of_its_own(case):
    epochs = []

    def crops(rows, epoch):
        epochs.append(epoch)
        yield case['train_x'][rows], case['train_y'][rows]

    rows = score({**case, 'fresh_crops': crops}, ['sgd', 'sgd_augmented'], ['all', '5'])
    assert epochs == [0, 1, 2] * 2  # of the selection, and of the refit
    assert [(row['probe'], row['labels']) for row in rows] == [
        ('sgd', 'all'),
        ('sgd', '5'),
        ('sgd_augmented', 'all'),
    ]
    assert all(row['chosen'].keys() == {'learning_rate', 'weight_decay'} for row in rows)


def test_unknown_labels_are_an_input_error():
    scoring.check_labels('all')
    scoring.check_labels('1%')
    with pytest.raises(InputError, match='images a class'):
        scoring.check_labels('none')
