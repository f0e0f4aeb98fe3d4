import numpy as np
import pytest

from bagssl_jax.analysis import locality
from bagssl_jax.analysis.windows import center_of, centered
from bagssl_jax.data.geometry import PatchGeometry

BOXES = PatchGeometry(8, 0.0, 0).grid_boxes(24, 24, 25)  # 4 pixels apart: half a side
DISTANCE = locality.distances(BOXES)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def embeddings(seed, *, of_image, of_place):
    """Windows [b p d] that share something with their image, and with those near them."""
    rng = np.random.default_rng(seed)
    b, d = 12, 32
    noise = rng.normal(size=(b, 7, 7, d))
    smooth = sum(noise[:, i : i + 5, j : j + 5] for i in range(3) for j in range(3)) / 3
    smooth = smooth.reshape(b, 25, d)
    return unit(of_image * rng.normal(size=(b, 1, d)) + of_place * smooth).astype(np.float32)


def test_distances_are_in_patch_sides_and_tell_what_overlaps():
    distance = locality.distances(BOXES)
    np.testing.assert_allclose(distance[0, :6], [0, 0.5, 1, 1.5, 2, 0.5])
    assert distance[0, 6] == 0.5  # diagonally
    assert distance[0, 24] == 2
    np.testing.assert_array_equal(distance, distance.T)


def test_ranks_are_shares_of_other_images_patches():
    vectors = unit(np.random.default_rng(0).normal(size=(4, 3, 6))).astype(np.float32)
    ranks = locality.ranks_of(vectors, seed=0)
    assert ranks.shape == (4, 3, 3)
    for i, a, b in np.ndindex(4, 3, 3):
        others = np.delete(vectors, i, axis=0).reshape(-1, 6) @ vectors[i, a]
        assert ranks[i, a, b] == pytest.approx(np.mean(others < vectors[i, a] @ vectors[i, b]))


def test_in_a_collapsed_space_all_are_equally_alike():
    vectors = np.ones((4, 3, 6), np.float32) / np.sqrt(6)
    np.testing.assert_array_equal(locality.ranks_of(vectors, seed=0), 0.5)


def test_ranks_do_not_know_how_similarities_are_scaled():
    """A narrow cone, as of an untrained network: all cosines near 1, in the same order."""
    vectors = embeddings(0, of_image=1.0, of_place=1.0)
    cone = vectors / 20
    cone = np.concatenate([cone, np.ones((*cone.shape[:2], 1))], axis=-1)  # of one length
    np.testing.assert_allclose(
        locality.ranks_of(unit(cone).astype(np.float64), seed=0),
        locality.ranks_of(vectors.astype(np.float64), seed=0),
        atol=0.01,
    )


def test_random_windows_are_as_alike_as_any():
    vectors = unit(np.random.default_rng(0).normal(size=(30, 25, 16))).astype(np.float32)
    rows = locality.summary({('trained', 'h'): locality.ranks_of(vectors, seed=0)}, DISTANCE)
    assert rows[0]['overlapping'] == pytest.approx(0.5, abs=0.02)
    assert rows[0]['apart'] == pytest.approx(0.5, abs=0.02)
    low, high = rows[0]['fall_interval']
    assert low < 0 < high


def test_what_is_local_falls_and_what_is_invariant_stays():
    ranks = {
        ('trained', 'h'): locality.ranks_of(embeddings(0, of_image=0.3, of_place=1.0), seed=0),
        ('trained', 'z'): locality.ranks_of(embeddings(0, of_image=2.0, of_place=1.0), seed=0),
    }
    h, z, difference = locality.summary(ranks, DISTANCE)
    assert h['fall'] > 0.15
    assert z['fall'] < 0.05
    assert z['apart'] > 0.95 > h['apart'] + 0.1
    assert difference['space'] == 'z-h'
    for key in ('overlapping', 'apart', 'fall'):
        assert difference[key] == pytest.approx(z[key] - h[key])
    assert difference['fall_interval'][1] < 0 < difference['apart_interval'][0]

    rows = locality.by_distance(ranks, DISTANCE)
    of_h = [row for row in rows if row['space'] == 'h']
    assert [row['distance'] for row in of_h] == pytest.approx([0.5, 1, 1.5, 2])
    assert of_h[0]['rank'] > of_h[1]['rank'] > of_h[3]['rank']
    for row in rows:
        assert row['interval'][0] <= row['rank'] <= row['interval'][1]
        assert (row['images'], row['windows']) == (12, 25)
    text = locality.table([h, z, difference])
    assert f'{h["fall"]:.3f}' in text


def test_where_all_windows_overlap_nothing_is_said_of_others():
    boxes = PatchGeometry(20, 0.0, 0).grid_boxes(24, 24, 25)
    ranks = {('trained', 'h'): locality.ranks_of(embeddings(0, of_image=1, of_place=1), seed=0)}
    [row] = locality.summary(ranks, locality.distances(boxes))
    assert (row['apart'], row['fall'], row['apart_interval']) == (None, None, None)
    assert row['overlapping'] > 0.5
    assert locality.table([row])


def test_centered_vectors_of_different_images_are_not_alike():
    vectors = embeddings(0, of_image=1.0, of_place=1.0) + 3  # all near one direction
    around = centered(vectors, center_of(vectors))
    np.testing.assert_allclose(np.linalg.norm(around, axis=-1), 1, rtol=1e-5)
    flat = around.reshape(-1, 32)
    cosines = flat @ flat.T
    assert abs(cosines[np.arange(300)[:, None] // 25 != np.arange(300) // 25].mean()) < 0.1
