import itertools
import sys

import numpy as np
import pytest

from bagssl_jax.analysis import colours, patch_map, planes
from bagssl_jax.analysis.look import Inapplicable
from bagssl_jax.errors import InputError


def test_a_map_draws_one_point_a_cell_in_the_order_of_both_coordinates():
    plane = np.random.default_rng(0).normal(size=(300, 2)) ** 3  # most lie close together
    drawn, places = patch_map.cells_of(plane, 8)
    assert len(set(map(tuple, places.tolist()))) == len(drawn) > 50
    assert len(set(drawn.tolist())) == len(drawn)
    assert places.min() == 0
    assert places.max() == 7
    columns = [plane[drawn[places[:, 1] == column], 0] for column in range(8)]
    rows = [plane[drawn[places[:, 0] == row], 1] for row in range(8)]
    for left, right in itertools.pairwise(columns):
        assert left.max() < right.min()
    for upper, lower in itertools.pairwise(rows):
        assert upper.min() > lower.max()


def test_the_variance_within_images_is_told_from_that_between_them():
    rng = np.random.default_rng(0)
    between, within = rng.normal(size=(400, 1, 3)), rng.normal(size=(400, 4, 3))
    for share in (0.2, 1.0):
        vectors = np.sqrt(1 - share) * between + np.sqrt(share) * within
        found = patch_map.described(vectors, vectors[..., :2].reshape(-1, 2), seed=0)
        assert found['within'] == pytest.approx(share, rel=0.1)
        assert found['within_interval'][0] < found['within'] < found['within_interval'][1]
        assert found['variance'] == pytest.approx([1 / 3] * 3, abs=0.05)
        assert (found['images'], found['patches']) == (400, 4)


def test_a_map_is_true_where_it_keeps_neighbours():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(200, 2))
    points = np.concatenate([plane, 0.01 * rng.normal(size=(200, 5))], axis=1)
    assert planes.trustworthiness(points, plane, 10) > 0.99
    assert planes.trustworthiness(points, rng.normal(size=(200, 2)), 10) < 0.6
    found = planes.METHODS['pca'](points, 0)
    assert planes.trustworthiness(points, found, 10) > 0.99
    components, shares = planes.principal_components(points[:, :2], 3, seed=0)
    assert components.shape == (200, 3)
    assert not components[:, 2].any()
    assert shares.sum() == pytest.approx(1)


def test_the_first_component_is_the_lightness():
    rng = np.random.default_rng(0)
    components = rng.normal(size=(500, 3)) * [9, 3, 1]
    found = colours.colours_of(components)
    assert found.shape == (500, 3)
    assert found.min() >= 0
    assert found.max() <= 1
    luma = found @ [0.2126, 0.7152, 0.0722]
    assert np.corrcoef(luma, components[:, 0])[0, 1] > 0.8
    assert np.corrcoef(found[:, 2] - found[:, :2].mean(1), components[:, 1])[0, 1] < -0.7
    assert np.corrcoef(found[:, 0] - found[:, 1], components[:, 2])[0, 1] > 0.7


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'umap', None)
    with pytest.raises(InputError, match=r"pip install 'bagssl-jax\[umap\]'"):
        planes.METHODS['umap'](np.zeros((9, 3)), 0)
    monkeypatch.setitem(sys.modules, 'sklearn.decomposition', None)
    with pytest.raises(Inapplicable, match=r"pip install 'bagssl-jax\[analysis\]'"):
        planes.METHODS['pca'](np.zeros((9, 3)), 0)
