import json

import jax.numpy as jnp
import numpy as np
import pytest

from bagssl_jax.probes.scores import paired, ranks, score, wilson


def test_wilson_by_hand():
    # p = 1/2 of n = 4, z^2 = 3.8415: 1/2 -+ z sqrt(1/16 + z^2 / 64) / (1 + z^2 / 4).
    half = 1.959964 * (1 / 16 + 3.841459 / 64) ** 0.5 / (1 + 3.841459 / 4)
    assert wilson(2, 4) == pytest.approx((0.5 - half, 0.5 + half), rel=1e-6)
    # All right: the lower end is n / (n + z^2), the upper one 1.
    assert wilson(10, 10) == pytest.approx((10 / 13.841459, 1), rel=1e-6)


def test_paired_by_hand():
    # One image of four more: 1 / 6 with two images of 1 and -1 by half; variance 2 / 6 - 1 / 36.
    difference, interval = paired(np.array([1, 1, 1, 0]), np.array([0, 1, 1, 0]))
    half = 1.96 * ((2 / 6 - 1 / 36) / 6) ** 0.5
    assert difference == 1 / 4
    assert interval == pytest.approx((1 / 6 - half, 1 / 6 + half), rel=1e-9)
    # Where no image differs there is a width; that of the other way round has the other sign.
    alike = np.array([True, False] * 49)
    assert paired(alike, alike) == (0, pytest.approx((-1.96 / 100, 1.96 / 100)))
    (there, ends), (back, others) = paired(alike, ~alike[::-1] & True), paired(~alike[::-1], alike)
    assert (there, ends) == (-back, (-others[1], -others[0]))


def test_paired_intervals_hold_what_they_say():
    rng = np.random.default_rng(0)
    easy = rng.random((4000, 60))  # the same images are easy for both
    first, second = easy + 0.1 * rng.random((2, *easy.shape)) < np.array([0.8, 0.7])[:, None, None]
    truth = 0.1
    found = [paired(*pair)[1] for pair in zip(first, second, strict=True)]
    held = np.mean([low <= truth <= high for low, high in found])
    assert 0.93 < held < 0.985
    narrow = np.mean([high - low for low, high in found])
    apart = [wilson(int(row.sum()), 60) for row in first[:100]]
    assert narrow < np.mean([high - low for low, high in apart]) * 2**0.5 * 0.8


def test_score_counts_by_class():
    labels = np.array([0, 0, 0, 0, 2, 2, 5, 6])
    found = score(np.array([0, 0, 0, 4, 1, 0, 5, 6]), labels, 7)
    assert found.top1 == 4 / 8
    assert found.top5 == 6 / 8
    assert found.per_class == (3 / 4, None, 1 / 2, None, None, 0, 0)
    assert found.interval == wilson(4, 8)
    assert found.n == 8
    assert json.loads(json.dumps(found._asdict()))['per_class'][:2] == [0.75, None]


def test_five_classes_or_fewer_have_no_top5():
    assert score(np.array([0, 4]), np.array([0, 1]), 5).top5 is None


@pytest.mark.parametrize('library', [np, jnp])
def test_ranks_count_what_scores_better_and_equal_scores_go_by_class(library):
    scores = library.array([[0.1, 0.3, 0.3, 0.2], [0.0, 0.0, 0.0, 0.0]])
    for label, expected in enumerate([(3, 0), (0, 1), (1, 2), (2, 3)]):
        found = ranks(scores, library.array([label, label]))
        assert isinstance(found, library.ndarray)
        assert tuple(found.tolist()) == expected


def test_a_score_that_is_nan_is_never_right():
    scores = np.array([[np.nan] * 3, [1.0, np.nan, 2.0], [1.0, np.nan, 2.0]])
    assert ranks(scores, np.array([0, 1, 2])).tolist() == [3, 3, 0]
