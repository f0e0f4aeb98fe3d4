"""What views cut out of images; how the pipeline runs them is shown in test_pipeline."""

import numpy as np

from bagssl_jax.data.cut import center_crop
from bagssl_jax.data.geometry import PatchGeometry, grid_places
from bagssl_jax.data.views import Center, FreshCrop, GridPatches, RandomPatches, Whole


def test_whole_images_of_another_size_cover_the_one_asked_for():
    image = np.zeros((8, 16, 3), np.uint8)
    image[:, 4:12] = 200
    patches = Whole(4, 4).cut([image], np.array([0]))
    np.testing.assert_array_equal(patches, np.full((1, 1, 4, 4, 3), 200))


def test_the_center_crop_is_a_bag_of_one():
    images = [np.random.default_rng(i).integers(0, 256, (20, 30, 3), np.uint8) for i in range(2)]
    patches = Center(8, 12).cut(images, np.array([0, 1]))
    assert patches.shape == (2, 1, 8, 12, 3)
    for image, [patch] in zip(images, patches, strict=True):
        np.testing.assert_array_equal(patch, center_crop(image, 8, 12))


def test_places_are_those_of_each_images_size():
    images = [np.full((8, 8, 3), 1, np.uint8), np.full((16, 40, 3), 2, np.uint8)]
    geometry = PatchGeometry(size=0, scale=0.25, resize=4)
    for view in (GridPatches(geometry, grid_places(4)), RandomPatches(geometry, 4, seed=0)):
        patches = view.cut(images, np.array([3, 5]))
        np.testing.assert_array_equal(patches[:, :, 0, 0, 0], [[1] * 4, [2] * 4])


def test_only_patches_of_a_fixed_size_do_not_fit_into_every_image():
    geometry = PatchGeometry(size=8, scale=0.0, resize=4)
    patches = (GridPatches(geometry, grid_places(4)), RandomPatches(geometry, 4, seed=0))
    assert [view.min_side for view in patches] == [8, 8]
    assert [view.min_side for view in (Whole(9, 9), Center(9, 9), FreshCrop(9, 0, 0))] == [0] * 3
