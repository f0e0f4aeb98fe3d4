"""The nearest-neighbour probe: exact, bounded in memory, the same on any number of devices."""

import jax
import numpy as np
import pytest

from bagssl_jax.errors import InputError
from bagssl_jax.parallel import make_mesh
from bagssl_jax.probes.knn import Setting, fit_knn, knn, votes
from bagssl_jax.probes.labels import held_out
from bagssl_jax.probes.nearest import Gallery

CLASSES = 7
KS, TEMPERATURES = (1, 3, 20), (0.02, 0.2)


def data(seed, count, width=12):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, width)).astype(np.float32)
    return features, rng.integers(0, CLASSES, count)


def reference_votes(train_x, train_y, test_x, k, temperature):
    """Wu et al. 2018, written plainly in float64."""
    train_x, test_x = train_x.astype(np.float64), test_x.astype(np.float64)
    train_x = train_x / np.linalg.norm(train_x, axis=1, keepdims=True)
    test_x = test_x / np.linalg.norm(test_x, axis=1, keepdims=True)
    votes = np.zeros((len(test_x), CLASSES))
    for i, cosines in enumerate(np.round(test_x @ train_x.T, 6)):
        for j in np.argsort(-cosines, kind='stable')[:k]:
            votes[i, train_y[j]] += np.exp(cosines[j] / temperature)
    return votes


def reference_score(train_x, train_y, test_x, test_y, k=20, temperature=0.07):
    """Top-1 and top-5 of the reference's votes."""
    votes = reference_votes(train_x, train_y, test_x, k, temperature)
    top5 = np.argsort(-votes, 1, kind='stable')[:, :5]
    voted = np.take_along_axis(votes, top5, 1) > 0
    hits = voted & (top5 == test_y[:, None])
    return hits[:, 0].mean(), hits.any(1).mean()


@pytest.mark.parametrize('devices', [1, 8])
@pytest.mark.parametrize(
    ('train', 'test', 'chunk', 'k'),
    [
        (60, 20, 20, 5),  # chunks that fit
        (61, 23, 20, 5),  # and that do not, in both splits
        (61, 23, 3, 20),  # more neighbours than a chunk, or than a device, has rows
        (61, 23, 1000, 20),  # one chunk
        (13, 23, 8, 20),  # more neighbours than rows, and padding alone on some devices
        (1, 1, 8, 20),
    ],
)
def test_equals_the_reference(train, test, chunk, k, devices):
    splits = *data(0, train), *data(1, test)
    mesh = make_mesh(jax.devices()[:devices])
    probe = knn(*splits, num_classes=CLASSES, k=k, chunk=chunk, mesh=mesh)
    assert (probe.top1, probe.top5) == pytest.approx(reference_score(*splits, k=k))
    assert probe.n == test


def with_ties(seed, count):
    """Rows along the axes and diagonals of a small cube: few directions, exact lengths."""
    rng = np.random.default_rng(seed)
    axes = np.eye(4, dtype=np.float32)[rng.integers(0, 4, count)]
    signs = rng.choice([-1, 1], (count, 4)).astype(np.float32)
    return np.where(rng.random((count, 1)) < 0.5, axes, signs), rng.integers(0, CLASSES, count)


def test_equally_near_rows_are_taken_in_order_also_across_devices():
    splits = *with_ties(0, 61), *with_ties(1, 23)
    cosines = splits[2] @ splits[0].T
    cosines /= np.linalg.norm(splits[2], axis=1)[:, None] * np.linalg.norm(splits[0], axis=1)
    expected = np.argsort(-cosines, axis=1, kind='stable')[:, :9]
    assert (np.diff(np.take_along_axis(cosines, expected, 1)) == 0).mean() > 0.5
    one_device = make_mesh(jax.devices()[:1])
    for mesh, chunk in ((one_device, 1000), (one_device, 7), (make_mesh(), 3)):
        gallery = Gallery(splits[0], chunk=chunk, mesh=mesh)
        _, rows = gallery.nearest(splits[2], np.ones(61, bool), 9)
        np.testing.assert_array_equal(rows, expected)
        probe = knn(*splits, num_classes=CLASSES, k=9, chunk=chunk, mesh=mesh)
        assert (probe.top1, probe.top5) == pytest.approx(reference_score(*splits, k=9))


def test_votes_by_hand():
    # Cosines 1, 0.6 and 0 with temperature 0.5, relative to the nearest: 1, e^-0.8 and e^-2.
    nearness, classes = np.array([[1.0, 0.6, 0.0]]), np.array([[0, 1, 1]])
    found = {k: each.copy() for k, each in votes(nearness, classes, 3, (1, 2, 3), 0.5)}
    np.testing.assert_allclose(found[1], [[1, 0, 0]])
    np.testing.assert_allclose(found[2], [[1, np.exp(-0.8), 0]])
    np.testing.assert_allclose(found[3], [[1, np.exp(-0.8) + np.exp(-2), 0]])


def test_many_votes_can_outweigh_the_nearest():
    train, labels = np.array([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1]]), np.array([0, 1, 1])
    query = np.array([[1.0, 0.0]])
    assert knn(train, labels, query, np.array([1]), num_classes=2, temperature=0.07).top1 == 1
    assert knn(train, labels, query, np.array([0]), num_classes=2, temperature=0.001).top1 == 1


def test_invariant_to_the_scale_of_each_row():
    (train_x, train_y), (test_x, test_y) = data(0, 61), data(1, 23)
    score = knn(train_x, train_y, test_x, test_y, num_classes=CLASSES, chunk=20)
    train_x = train_x * np.logspace(-30, 30, 61, dtype=np.float32)[:, None]
    test_x = test_x * np.logspace(30, -30, 23, dtype=np.float32)[:, None]
    assert knn(train_x, train_y, test_x, test_y, num_classes=CLASSES, chunk=20) == score


def test_a_class_without_votes_is_not_among_the_five():
    train, test = np.eye(2, 3), np.ones((3, 3))
    labels = np.array([6, 5])
    probe = knn(train, labels, test, np.array([0, 5, 6]), num_classes=CLASSES)
    assert probe.top5 == pytest.approx(2 / 3)
    assert probe.top1 == pytest.approx(1 / 3)  # equal votes: the lower class


def test_five_classes_or_fewer_have_no_top5():
    x, y = data(0, 20)
    assert knn(x, y % 5, x, y % 5, num_classes=5).top5 is None


def clustered(seed, count):
    """Overlapping classes in two dimensions, and ten of noise: k matters."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % CLASSES)
    angles = 2 * np.pi * labels / CLASSES
    signal = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    noise = rng.normal(size=(count, 12)) * 0.4
    return np.concatenate([signal, np.zeros((count, 10))], axis=1) + noise, labels


def test_the_sweep_equals_one_search_after_another():
    x, y = clustered(0, 140)
    splits = x, y, *clustered(1, 70)
    grids = {'k_grid': KS, 'temperature_grid': TEMPERATURES}
    probe = fit_knn(*splits, num_classes=CLASSES, chunk=32, **grids)
    held = held_out(y, 0.1)
    assert set(probe.validation) == {(k, t) for k in KS for t in TEMPERATURES}
    for (k, temperature), top1 in probe.validation.items():
        expected, _ = reference_score(x[~held], y[~held], x[held], y[held], k, temperature)
        assert top1 == pytest.approx(expected)
    assert len(set(probe.validation.values())) > 1
    k, temperature = probe.chosen
    assert probe.validation[probe.chosen] == max(probe.validation.values())
    assert probe.score == knn(*splits, num_classes=CLASSES, k=k, temperature=temperature)
    assert probe.fixed == knn(*splits, num_classes=CLASSES)
    assert (probe.fixed.top1, probe.fixed.top5) == pytest.approx(reference_score(*splits))


def test_one_search_serves_the_whole_grid(monkeypatch):
    asked = []
    original = Gallery.nearest

    def recorded(gallery, queries, used, k):
        asked.append((len(queries), int(used.sum()), k))
        return original(gallery, queries, used, k)

    monkeypatch.setattr(Gallery, 'nearest', recorded)
    fit_knn(*clustered(0, 140), *clustered(1, 70), num_classes=CLASSES, k_grid=(1, 30))
    # 14 held-out rows among the other 126; the test split among all, for the fixed k of 20 too.
    assert [ask[:2] for ask in asked] == [(14, 126), (70, 140)]
    assert asked[0][2] == 30
    assert asked[1][2] in (20, 30)


def test_small_splits_clip_the_grid_and_one_example_a_class_needs_no_choice():
    x, y = clustered(0, 14)
    probe = fit_knn(x, y, *clustered(1, 70), num_classes=CLASSES)
    assert {k for k, _ in probe.validation} == {1, 5, 7}  # one of two of each class is held out
    x, y = clustered(0, CLASSES)
    splits = x, y, *clustered(1, 70)
    probe = fit_knn(*splits, num_classes=CLASSES)
    assert probe.validation == {}
    assert probe.chosen == Setting(CLASSES, 0.07)
    assert probe.score.top1 == knn(*splits, num_classes=CLASSES, k=1).top1


def test_features_that_are_not_finite_are_an_input_error():
    x, y = data(0, 20)
    broken = x.copy()
    broken[3, 1] = np.inf
    with pytest.raises(InputError, match='training split hold NaN'):
        knn(broken, y, x, y, num_classes=CLASSES)
    with pytest.raises(InputError, match='test split hold NaN'):
        fit_knn(x, y, broken, y, num_classes=CLASSES)


def test_misuse_is_an_error():
    x, y = data(0, 20)
    with pytest.raises(ValueError, match=r'got \(20, 12\) and \(19,\)'):
        knn(x, y[:-1], x, y, num_classes=CLASSES)
    with pytest.raises(ValueError, match='labels must be'):
        knn(x, y, x, y, num_classes=3)
    with pytest.raises(ValueError, match='widths'):
        knn(x, y, x[:, 1:], y, num_classes=CLASSES)
    for wrong in ({'k': 0}, {'temperature': 0.0}, {'chunk': 0}):
        with pytest.raises(ValueError, match='not positive'):
            knn(x, y, x, y, num_classes=CLASSES, **wrong)
    with pytest.raises(ValueError, match='nothing to choose from'):
        fit_knn(x, y, x, y, num_classes=CLASSES, k_grid=())
