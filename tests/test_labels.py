import itertools

import numpy as np
import pytest

from bagssl_jax.errors import InputError
from bagssl_jax.probes.labels import few, held_out, parse_labels

LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 4], [40, 250, 120]))


@pytest.mark.parametrize(
    ('text', 'expected'),
    [('1', (1, 1, 1)), ('10', (10, 10, 10)), ('10%', (4, 25, 12)), ('1%', (1, 2, 1))],
)
def test_each_class_gives_its_count_or_share_and_at_least_one(text, expected):
    rows = few(LABELS, **parse_labels(text), seed=3)
    assert np.bincount(LABELS[rows])[[0, 1, 4]].tolist() == list(expected)
    assert (np.diff(rows) > 0).all()


def test_the_draw_depends_on_the_seed_and_the_class_alone():
    rows = few(LABELS, per_class=5, seed=3)
    np.testing.assert_array_equal(few(LABELS, per_class=5, seed=3), rows)
    assert (few(LABELS, per_class=5, seed=4) != rows).any()
    others = np.where(LABELS == 0, 1, LABELS)  # class 0 is gone, class 4 as it was
    of_four = [row for row in rows if LABELS[row] == 4]
    assert [row for row in few(others, per_class=5, seed=3) if others[row] == 4] == of_four


def test_smaller_draws_are_part_of_larger_ones():
    draws = [few(LABELS, **parse_labels(text), seed=0) for text in ('1', '5', '10', '50%', '100%')]
    for small, large in itertools.pairwise(draws):
        assert set(small) < set(large)
    assert draws[-1].tolist() == list(range(len(LABELS)))


def test_more_labels_than_a_class_has_are_an_input_error():
    with pytest.raises(InputError, match='class 0 has only 40 training images'):
        few(LABELS, per_class=41, seed=0)
    for wrong in ({}, {'per_class': 1, 'share': 0.1}):
        with pytest.raises(ValueError, match='give one'):
            few(LABELS, **wrong, seed=0)
    for wrong in ({'per_class': 0}, {'share': 0.0}, {'share': 1.5}):
        with pytest.raises(ValueError, match='out of range'):
            few(LABELS, **wrong, seed=0)


def test_a_rows_name_says_what_it_asks_for():
    assert parse_labels('5') == {'per_class': 5}
    assert parse_labels('1%') == {'share': 0.01}
    assert parse_labels('2.5%') == {'share': 0.025}
    for wrong in ('', '0', '-1', '1.5', 'all', '%', '0%', '101%', 'nan%', '1%%'):
        with pytest.raises(InputError, match='images a class, such as 10') as error:
            parse_labels(wrong)
        assert '\n' not in str(error.value)


def test_held_out_is_the_end_of_each_class():
    labels = np.array([0] * 10 + [1] * 20 + [2] * 2 + [3])
    held = held_out(labels, 0.1)
    np.testing.assert_array_equal(np.nonzero(held)[0], [9, 28, 29, 31])  # none of class 3
    order = np.random.default_rng(0).permutation(len(labels))
    mixed = held_out(labels[order], 0.1)
    assert np.bincount(labels[order][mixed]).tolist() == [1, 2, 1]
    for label in range(3):
        assert mixed[labels[order] == label].tolist() == held[labels == label].tolist()
    # Two examples are shared out, however large the share.
    np.testing.assert_array_equal(held_out(np.array([0, 0]), 0.9), [False, True])
