import dataclasses

import numpy as np
import pytest

from bagssl_jax.data.geometry import PatchGeometry, grid_places
from bagssl_jax.errors import InputError


def test_side_is_the_share_of_the_area():
    assert PatchGeometry(0, 0.25, 0).side(32, 32) == 16
    assert PatchGeometry(0, 0.25, 0).side(40, 90) == 30
    assert PatchGeometry(7, 0.25, 0).side(32, 32) == 7
    # A quarter of 40x400 is 63x63, which no place holds.
    assert PatchGeometry(0, 0.25, 0).side(40, 400) == 40


@pytest.mark.parametrize(
    ('over', 'expected'),
    [
        ({'size': 0, 'scale': 0.0, 'resize': 0}, (16, 0.25, 32)),
        ({'size': 0, 'scale': 0.5, 'resize': 0}, (0, 0.5, 32)),
        ({'size': 8, 'scale': 0.0, 'resize': 8}, (8, 0.0, 8)),
        ({'size': 0, 'scale': 0.0, 'resize': 8}, (16, 0.25, 8)),
    ],
)
def test_patches_of_another_group_take_the_place_of_the_trainings(over, expected):
    patches = {'count': 4, 'size': 16, 'scale': 0.25, 'resize': 32}
    assert PatchGeometry.of(patches, over=over) == PatchGeometry(*expected)
    assert PatchGeometry.of(patches) == PatchGeometry(16, 0.25, 32)


@pytest.mark.parametrize(
    ('size', 'scale', 'message'),
    [
        (33, 0.25, r'33x33 .*patches.size=33.* does not fit .* 32x40'),
        (0, 1.5, r'patches.scale=1.5 is not a share'),
        (0, 0.0, r'patches.scale=0.0 is not a share'),
        (-3, 0.25, r'patches.size=-3'),
    ],
)
def test_a_patch_that_does_not_fit_is_refused(size, scale, message):
    with pytest.raises(InputError, match=message):
        PatchGeometry(size, scale, 0).side(32, 40)


def test_sides_are_those_of_each_image():
    sides = PatchGeometry(0, 0.25, 0).sides(np.array([32, 40, 3]), np.array([32, 90, 3]))
    assert sides.tolist() == [16, 30, 2]
    # 1% of 5x5 pixels is half a pixel wide
    assert PatchGeometry(0, 0.01, 0).sides(np.array([5]), np.array([5])).tolist() == [1]
    with pytest.raises(InputError, match=r'33x33 .* does not fit .* 40x32'):
        PatchGeometry(33, 0.0, 0).sides(np.array([64, 40, 10]), np.array([33, 32, 10]))


def test_patches_that_may_differ_in_size_are_refused():
    scaled = PatchGeometry(size=0, scale=0.25, resize=0)
    resized = dataclasses.replace(scaled, resize=5)
    for geometry, image_shape in (
        (resized, None),
        (dataclasses.replace(scaled, size=8), None),
        (scaled, (32, 40)),
    ):
        geometry.check(image_shape)
    with pytest.raises(InputError, match=r'patches\.resize=SIDE'):
        scaled.check(None)


def test_grid_is_even_and_reaches_the_edges():
    boxes = PatchGeometry(16, 0.0, 0).grid_boxes(48, 32, 9)
    np.testing.assert_array_equal(np.unique(boxes[:, 0]), [0, 16, 32])
    np.testing.assert_array_equal(np.unique(boxes[:, 1]), [0, 8, 16])
    assert len(np.unique(boxes, axis=0)) == 9


def test_one_box_is_the_center_crop():
    boxes = PatchGeometry(16, 0.0, 0).grid_boxes(48, 32, 1)
    np.testing.assert_array_equal(boxes, [[16, 8, 16, 16]])


@pytest.mark.parametrize(
    ('count', 'rows'), [(2, [2]), (3, [1, 2]), (7, [2, 2, 3]), (20, [5, 5, 5, 5])]
)
def test_a_grid_may_have_any_count(count, rows):
    places = grid_places(count)
    assert [(places[:, 0] == y).sum() for y in np.unique(places[:, 0])] == rows
    for y in np.unique(places[:, 0]):
        x = places[places[:, 0] == y, 1]
        np.testing.assert_allclose(x, [0.5] if len(x) == 1 else np.linspace(0, 1, len(x)))
    assert len(np.unique(places, axis=0)) == count


def test_smaller_grids_are_found_in_larger_ones():
    small, large = ({tuple(place) for place in grid_places(n)} for n in (16, 256))
    assert small < large


@pytest.mark.parametrize('count', [0, -4])
def test_a_grid_of_none_is_refused(count):
    with pytest.raises(InputError, match='give 1 or more'):
        PatchGeometry(16, 0.0, 0).grid_boxes(48, 48, count)


def test_a_geometry_is_part_of_a_configurations_patches():
    group = {'count': 3, 'size': 4, 'scale': 0.25, 'resize': 5}
    assert PatchGeometry.of(group) == PatchGeometry(size=4, scale=0.25, resize=5)


@pytest.mark.parametrize(
    ('geometry', 'side'),
    [
        (PatchGeometry(16, 0.25, 8), 8),
        (PatchGeometry(16, 0.25, 0), 16),
        (PatchGeometry(0, 0.25, 0), 32),
    ],
)
def test_networks_start_from_the_side_that_every_patch_has(geometry, side):
    assert geometry.input_side == side
