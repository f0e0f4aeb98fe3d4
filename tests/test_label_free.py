import numpy as np
import pytest

from bagssl_jax.probes.label_free import alignment, rankme, uniformity


def test_rankme_by_hand():
    # Singular values 2 and 1, so p = 2/3 and 1/3: exp(entropy) = 3 / 4^(1/3).
    assert rankme(np.diag([2.0, 1.0])) == pytest.approx(3 / 4 ** (1 / 3), rel=1e-5)
    assert rankme(np.eye(6)) == pytest.approx(6, rel=1e-5)
    assert rankme(np.zeros((5, 3))) == 0


@pytest.mark.parametrize(
    ('shape', 'rank'), [((300, 20), 20), ((20, 300), 20), ((9000, 30), 5), ((50, 50), 1)]
)
def test_rankme_equals_the_reference(shape, rank):
    # Decaying directions, off centre where the rank allows: RankMe does not centre.
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(shape[0], rank)), rng.normal(size=(rank, shape[1]))
    x = (left * np.logspace(0, -3, rank) + 1) @ right
    singular = np.linalg.svd(x, compute_uv=False)
    p = singular / singular.sum() + 1e-7
    expected = np.exp(-(p * np.log(p)).sum())
    assert rankme(x) == pytest.approx(expected, rel=2e-5)
    assert rankme(x.astype(np.float32)) == pytest.approx(expected, rel=1e-3)


def test_rankme_of_a_subset_of_the_rows():
    x = np.repeat(np.eye(4), 100, axis=0)  # sorted by direction: the first rows are all alike
    assert rankme(x, rows=8) == pytest.approx(4, rel=1e-5)
    assert rankme(x, rows=None) == pytest.approx(4, rel=1e-5)
    assert rankme(x, rows=2) == pytest.approx(2, rel=1e-5)  # the first and the last


def test_uniformity_by_hand():
    # One pair of the opposite directions (distance 2) and two of orthogonal ones (root 2).
    x = np.array([[3.0, 0.0], [-1.0, 0.0], [0.0, 2.0]])
    expected = np.log((np.exp(-8) + 2 * np.exp(-4)) / 3)
    assert uniformity(x) == pytest.approx(expected, rel=1e-9)
    assert uniformity(np.array([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8, rel=1e-9)
    assert uniformity(np.full((7, 3), 2.0)) == pytest.approx(0, abs=1e-9)


def test_uniformity_equals_the_reference():
    x = np.random.default_rng(0).normal(size=(700, 5))
    units = x / np.linalg.norm(x, axis=1, keepdims=True)
    i, j = np.triu_indices(700, 1)
    expected = np.log(np.exp(-2 * ((units[i] - units[j]) ** 2).sum(1)).mean())
    assert uniformity(x) == pytest.approx(expected, rel=1e-9)
    rows = np.linspace(0, 699, 100).astype(int)
    assert uniformity(x, rows=100) == pytest.approx(uniformity(x[rows]), rel=1e-12)


def test_alignment_by_hand():
    # Distances squared of the three pairs: 2 (orthogonal), 4 (opposite), 2; then all alike.
    bag = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    alike = np.full((3, 2), 0.5**0.5)
    assert alignment(bag.mean(0)[None], 3) == pytest.approx(8 / 3, rel=1e-9)
    means = np.stack([bag.mean(0), alike.mean(0)])
    assert alignment(means, 3) == pytest.approx(4 / 3, rel=1e-9)


def test_alignment_equals_the_reference():
    bags = np.random.default_rng(0).normal(size=(1500, 4, 6))
    units = bags / np.linalg.norm(bags, axis=2, keepdims=True)
    i, j = np.triu_indices(4, 1)
    expected = ((units[:, i] - units[:, j]) ** 2).sum(2).mean()
    assert alignment(units.mean(axis=1), 4) == pytest.approx(expected, rel=1e-9)


def test_misuse_is_an_error():
    with pytest.raises(ValueError, match='pairs of patches'):
        alignment(np.ones((4, 3)), 1)
    with pytest.raises(ValueError, match='pairs of rows'):
        uniformity(np.ones((1, 3)))
    with pytest.raises(ValueError, match='features'):
        rankme(np.ones(3))
