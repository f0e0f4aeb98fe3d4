"""The nearest-neighbour probe: exact, bounded in memory, indifferent to scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bagssl_jax.errors import InputError
from bagssl_jax.evaluation import knn as module
from bagssl_jax.evaluation.knn import knn, knn_votes

CLASSES = 7


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
    for i, cosines in enumerate(test_x @ train_x.T):
        for j in np.argsort(-cosines, kind='stable')[:k]:
            votes[i, train_y[j]] += np.exp(cosines[j] / temperature)
    return votes / votes.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ('train', 'test', 'chunk', 'k'),
    [
        (60, 20, 20, 5),  # chunks that fit
        (61, 23, 20, 5),  # and that do not, in both splits
        (61, 23, 8, 20),  # more neighbours than a chunk has rows
        (61, 23, 1000, 20),  # one chunk
        (13, 23, 8, 20),  # more neighbours than rows
        (1, 1, 8, 20),
    ],
)
def test_equals_the_reference(train, test, chunk, k):
    (train_x, train_y), (test_x, test_y) = data(0, train), data(1, test)
    votes = knn_votes(train_x, train_y, test_x, num_classes=CLASSES, k=k, chunk=chunk)
    expected = reference_votes(train_x, train_y, test_x, k, 0.07)
    np.testing.assert_allclose(votes, expected, atol=1e-5)
    probe = knn(train_x, train_y, test_x, test_y, num_classes=CLASSES, k=k, chunk=chunk)
    assert probe.top1 == pytest.approx((expected.argmax(1) == test_y).mean())
    top5 = np.argsort(-expected, 1, kind='stable')[:, :5]
    voted = np.take_along_axis(expected, top5, 1) > 0
    assert probe.top5 == pytest.approx((voted & (top5 == test_y[:, None])).any(1).mean())


def test_votes_by_hand():
    # Cosines 1, 0.6 and 0 with temperature 0.5; k = 2 leaves the third out.
    train = np.array([[2.0, 0.0], [3.0, 4.0], [0.0, 5.0]])
    votes = knn_votes(
        train, np.array([0, 1, 1]), np.array([[7.0, 0.0]]), num_classes=2, k=2, temperature=0.5
    )
    near, far = np.exp(1 / 0.5), np.exp(0.6 / 0.5)
    np.testing.assert_allclose(votes, [[near / (near + far), far / (near + far)]], rtol=1e-6)


def test_many_votes_can_outweigh_the_nearest():
    train, labels = np.array([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1]]), np.array([0, 1, 1])
    query = np.array([[1.0, 0.0]])
    assert knn(train, labels, query, np.array([1]), num_classes=2, temperature=0.07).top1 == 1
    assert knn(train, labels, query, np.array([0]), num_classes=2, temperature=0.001).top1 == 1


def test_invariant_to_the_scale_of_each_row():
    (train_x, train_y), (test_x, _) = data(0, 61), data(1, 23)
    votes = knn_votes(train_x, train_y, test_x, num_classes=CLASSES, chunk=20)
    train_x = train_x * np.logspace(-30, 30, 61, dtype=np.float32)[:, None]
    test_x = test_x * np.logspace(30, -30, 23, dtype=np.float32)[:, None]
    other = knn_votes(train_x, train_y, test_x, num_classes=CLASSES, chunk=20)
    np.testing.assert_allclose(other, votes, atol=1e-5)


def test_equally_near_rows_are_taken_in_order():
    train = np.ones((61, 3), np.float32)
    labels = np.array([4, 2, 2] + [1] * 58)
    votes = knn_votes(train, labels, train[:5], num_classes=CLASSES, k=3, chunk=2)
    np.testing.assert_allclose(votes[:, [4, 2]], np.tile([[1 / 3, 2 / 3]], (5, 1)))


def test_zero_rows_are_far_from_everything_and_not_nan():
    (train_x, train_y), (test_x, test_y) = data(0, 61), data(1, 23)
    train_x[5] = 0
    test_x[3] = 0
    votes = knn_votes(train_x, train_y, test_x, num_classes=CLASSES, k=4, chunk=20)
    assert np.isfinite(votes).all()
    # For the zero row every cosine is 0: the first four rows, equally.
    np.testing.assert_allclose(votes[3], np.bincount(train_y[:4], minlength=CLASSES) / 4)
    assert 0 <= knn(train_x, train_y, test_x, test_y, num_classes=CLASSES).top1 <= 1


def test_padding_is_never_a_neighbour():
    # All cosines are negative, so the zero rows of the padding would be nearer.
    train, test = -np.ones((5, 3)), np.ones((3, 3))
    votes = knn_votes(train, np.full(5, 3), test, num_classes=CLASSES, k=4, chunk=4)
    np.testing.assert_array_equal(votes, np.eye(CLASSES)[[3, 3, 3]])


def test_a_class_without_votes_is_not_among_the_five():
    train, test = np.eye(2, 3), np.ones((3, 3))
    labels = np.array([6, 5])
    probe = knn(train, labels, test, np.array([0, 5, 6]), num_classes=CLASSES)
    assert probe.top5 == pytest.approx(2 / 3)
    assert probe.top1 == pytest.approx(1 / 3)  # equal votes: the lower class


def test_five_classes_or_fewer_have_no_top5():
    x, y = data(0, 20)
    assert knn(x, y % 5, x, y % 5, num_classes=5).top5 is None


def test_memory_is_bounded_by_the_chunk(monkeypatch):
    def temporary_bytes(chunks):
        program = module._nearest.lower(
            jnp.zeros((16, 12)),
            jnp.zeros((chunks, 16, 12)),
            jnp.zeros((chunks, 16), jnp.int32),
            0,
            k=5,
        )
        return program.compile().memory_analysis().temp_size_in_bytes

    # 40 times the training rows in no more room. (Their product with the queries takes 40 kB.)
    assert temporary_bytes(40) <= temporary_bytes(2) + 1024

    shapes = []
    original = module._nearest

    def recorded(queries, gallery, labels, size, *, k):
        shapes.append((queries.shape, gallery.shape, k))
        return original(queries, gallery, labels, size, k=k)

    monkeypatch.setattr(module, '_nearest', recorded)
    (train_x, train_y), (test_x, _) = data(0, 61), data(1, 41)
    knn_votes(train_x, train_y, test_x, num_classes=CLASSES, k=5, chunk=16)
    assert shapes == [((16, 12), (4, 16, 12), 5)] * 3


def test_one_program_for_all_chunks_and_calls():
    (train_x, train_y), (test_x, test_y) = data(0, 61), data(1, 23)
    first = knn(train_x, train_y, test_x, test_y, num_classes=CLASSES, chunk=19)
    compiled = module._nearest._cache_size()
    assert knn(train_x, train_y, test_x, test_y, num_classes=CLASSES, chunk=19) == first
    # Other values, half precision, another temperature, another size that pads to the same.
    half = jax.numpy.asarray(train_x[:60], jnp.bfloat16)
    knn(half, train_y[:60], test_x, test_y, num_classes=CLASSES, temperature=0.1, chunk=19)
    assert module._nearest._cache_size() == compiled


def test_features_that_are_not_finite_are_an_input_error():
    x, y = data(0, 20)
    broken = x.copy()
    broken[3, 1] = np.inf
    with pytest.raises(InputError, match='training split hold NaN'):
        knn(broken, y, x, y, num_classes=CLASSES)
    with pytest.raises(InputError, match='test split hold NaN'):
        knn(x, y, broken, y, num_classes=CLASSES)


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
