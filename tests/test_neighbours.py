import types

import numpy as np
import pytest

from bagssl_jax.analysis import neighbours
from bagssl_jax.analysis.neighbours import Places, Search, overlap
from bagssl_jax.analysis.queries import chosen_queries, drawn_queries
from bagssl_jax.analysis.sample import Sample
from bagssl_jax.data.datasets import Images
from bagssl_jax.data.geometry import PatchGeometry
from bagssl_jax.data.sources import ArraySource
from bagssl_jax.errors import InputError
from bagssl_jax.parallel import make_mesh

GEOMETRY = PatchGeometry(size=8, scale=0.0, resize=0)
BOXES = GEOMETRY.grid_boxes(12, 12, 9)  # each overlaps its neighbours on the grid


def test_boxes_overlap_where_they_share_a_pixel():
    box = np.array([4, 4, 8, 8])
    others = np.array([[4, 4, 8, 8], [11, 11, 8, 8], [12, 4, 8, 8], [4, 12, 8, 8], [0, 0, 4, 30]])
    assert overlap(box, others).tolist() == [True, True, False, False, False]


def test_neighbours_are_the_nearest_that_do_not_overlap():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(6, 9, 5)).astype(np.float32)
    boxes = PatchGeometry(8, 0.0, 0).grid_boxes(16, 16, 9)  # the corners do not overlap each other
    search = Search(vectors, boxes, make_mesh())
    queries, images = vectors[[0, 5], [0, 4]], np.array([0, 5])
    found = search.nearest(queries, images, boxes[[0, 4]], 40)
    elsewhere = search.nearest(queries, images, None, 40)
    flat = vectors.reshape(54, 5)
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    for i, (image, place) in enumerate([(0, 0), (5, 4)]):
        order = np.argsort(-(unit @ unit[9 * image + place]))
        own = order // 9 == image
        clash = own & [(abs(boxes[n % 9] - boxes[place])[:2] < 8).all() for n in order]
        assert found[i].tolist() == order[~clash][:40].tolist()
        assert elsewhere[i].tolist() == order[~own][:40].tolist()
        assert 9 * image + place not in found[i]
    assert (found[0] // 9 == 0).any()  # patches of its own image that it does not overlap


def test_a_query_from_outside_has_neighbours_in_every_image():
    vectors = np.eye(8, dtype=np.float32).reshape(2, 4, 8)
    search = Search(vectors, GEOMETRY.grid_boxes(12, 12, 4), make_mesh())
    found = search.nearest(vectors[:1, 0], np.array([-1]), BOXES[:1], 1)
    assert found.tolist() == [[0]]


def test_shares_are_counted_by_image():
    boxes = PatchGeometry(8, 0.0, 0).grid_boxes(16, 16, 4)  # none overlap
    asked = Places(np.array([0, 0, 2, 2]), np.array([0, 1, 2, 3]))
    found = np.array([[0, 1], [1, 1], [2, 2], [0, 2]])  # images of their neighbours
    elsewhere = np.array([[1, 2], [1, 1], [0, 1], [0, 3]])
    labels = np.array([5, 5, 6, 6])
    own, same = neighbours.shares(asked, found, elsewhere, boxes, labels, {'space': 'h'})
    assert (own['of'], own['share']) == ('image', pytest.approx((1 / 4 + 3 / 4) / 2))
    assert own['chance'] == pytest.approx(3 / 15)
    assert (same['of'], same['share']) == ('class', pytest.approx((3 / 4 + 1 / 4) / 2))
    assert same['chance'] == pytest.approx(1 / 3)
    assert same['interval'][0] <= same['share'] <= same['interval'][1]
    for row in (own, same):
        assert (row['space'], row['neighbours'], row['queries']) == ('h', 2, 4)
        assert (row['images'], row['patches']) == (4, 4)


def test_without_labels_there_is_no_share_of_classes():
    asked = neighbours.drawn_places(3, 9, 6, seed=0)
    assert np.bincount(asked.image).tolist() == [2, 2, 2]
    assert len(set(zip(asked.image.tolist(), asked.place.tolist(), strict=True))) == 6
    found = np.zeros((6, 2), int)
    rows = neighbours.shares(asked, found, found, BOXES, np.full(3, -1), {})
    assert [row['of'] for row in rows] == ['image']
    assert rows[0]['share'] == pytest.approx(1 / 3)


def test_fewer_queries_than_images_are_of_different_ones():
    asked = neighbours.drawn_places(30, 9, 6, seed=0)
    assert len(set(asked.image.tolist())) == len(asked.image) == 6


@pytest.fixture(scope='module')
def images():
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 12, 3), np.uint8)
    pixels[::3] = 7  # plain ones
    return Images('noise', ArraySource(pixels, np.arange(12) // 4, ('a', 'b', 'c')), True)


@pytest.fixture(scope='module')
def sample(images):
    source = images.source
    return Sample(source.images, source.labels, tuple(images.name(i) for i in range(12)))


def test_drawn_queries_are_of_different_classes_and_not_plain(sample):
    queries = drawn_queries(sample, BOXES, 3, seed=1)
    assert sorted(query.label for query in queries) == [0, 1, 2]
    for query in queries:
        assert query.image % 3
        assert query.label == sample.labels[query.image]
        np.testing.assert_array_equal(query.pixels, sample.pixels[query.image])
        assert query.box.tolist() in BOXES.tolist()
    again = drawn_queries(sample, BOXES, 3, seed=1)
    assert [query.image for query in queries] == [query.image for query in again]


def test_chosen_queries_are_around_their_pixels(images, sample):
    encoder = types.SimpleNamespace(geometry=GEOMETRY)
    part = Sample(sample.pixels[:3], sample.labels[:3], sample.names[:3])
    chosen = (2, 6, 6, 11, 0, 11)
    first, second = chosen_queries(chosen, images, part, encoder, key='chosen')
    assert (first.image, first.label, first.box.tolist()) == (2, 0, [2, 2, 8, 8])
    assert (second.image, second.label, second.box.tolist()) == (-1, 2, [0, 4, 8, 8])
    np.testing.assert_array_equal(second.pixels, images.source.images[11])


@pytest.mark.parametrize(
    ('chosen', 'problem'),
    [
        ((1, 2), 'three numbers a patch'),
        ((12, 0, 0), 'no image 12 among 12'),
        ((0, 12, 0), 'no pixel 12, 0 in an image of 12x12'),
    ],
)
def test_what_cannot_be_chosen_is_refused(images, sample, chosen, problem):
    encoder = types.SimpleNamespace(geometry=GEOMETRY)
    with pytest.raises(InputError, match=problem):
        chosen_queries(chosen, images, sample, encoder, key='chosen')
