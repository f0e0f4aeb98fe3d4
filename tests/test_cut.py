import numpy as np
import pytest
from PIL import Image

from bagssl_jax.data.cut import center_crop, center_window, covering, cut, resized


def gradient(height, width):
    """An image whose pixel at (y, x) is (y, x, 0)."""
    y, x = np.indices((height, width))
    return np.stack([y, x, np.zeros_like(y)], axis=-1).astype(np.uint8)


def assert_cut(patches, images, boxes):
    assert patches.dtype == np.uint8
    assert patches.shape[:2] == boxes.shape[:2]
    for bag, image, places in zip(patches, images, boxes, strict=True):
        for patch, (y, x, h, w) in zip(bag, places, strict=True):
            np.testing.assert_array_equal(patch, image[y : y + h, x : x + w])


BOXES = np.array([[[3, 5, 4, 6], [16, 24, 4, 6]], [[0, 0, 4, 6], [7, 9, 4, 6]]])


def test_cut_keeps_the_pixels():
    images = np.stack([gradient(20, 30), gradient(20, 30) + 100])
    assert_cut(cut(images, BOXES, resize=0), images, BOXES)
    # The same images as a view of larger ones
    view = np.pad(images, [(0, 0), (1, 2), (3, 4), (0, 0)])[:, 1:-2, 3:-4]
    assert_cut(cut(view, BOXES, resize=0), images, BOXES)


def test_images_may_differ_in_size():
    images = [gradient(20, 30), gradient(41, 17)]
    assert_cut(cut(images, BOXES, resize=0), images, BOXES)


def test_boxes_are_resized_one_by_one():
    images = np.random.default_rng(0).integers(0, 256, (2, 24, 20, 3), dtype=np.uint8)
    boxes = np.array([[[1, 2, 16, 16], [0, 0, 24, 20]], [[5, 3, 8, 8], [20, 0, 3, 20]]])
    patches = cut(images, boxes, resize=8)
    assert patches.shape == (2, 2, 8, 8, 3)
    np.testing.assert_array_equal(patches, cut(list(images), boxes, resize=8))
    np.testing.assert_array_equal(patches[1, 0], images[1, 5:13, 3:11])
    np.testing.assert_array_equal(patches[0, 1], resized(images[0], 8, 8))
    np.testing.assert_array_equal(patches[1, 1], resized(images[1, 20:23], 8, 8))


def test_shrinking_averages_areas():
    images = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    shrunk = cut(images, np.array([[[0, 0, 16, 16]]]), resize=4)[0, 0]
    means = images.reshape(4, 4, 4, 4, 3).mean(axis=(1, 3))
    assert abs(shrunk - means).max() <= 0.5 + 1e-6


def test_shrinking_averages_shares_of_pixels():
    image = np.array([0, 90, 240], np.uint8)[:, None, None] * np.ones((3, 3, 3), np.uint8)
    # (0 + 90/2) / 1.5 and (90/2 + 240) / 1.5
    shrunk = resized(image, 2, 3)
    np.testing.assert_array_equal(shrunk[..., 0], [[30] * 3, [190] * 3])


def test_enlarging_is_bilinear_at_pixel_centers():
    image = np.zeros((1, 2, 3), np.uint8)
    image[0, 1] = 200
    # Centers of the 4 new pixels lie at -0.25, 0.25, 0.75, 1.25 of the 2 old ones.
    np.testing.assert_array_equal(resized(image, 1, 4)[0, :, 0], [0, 50, 150, 200])


def test_every_axis_is_resized_in_its_own_way():
    image = np.zeros((8, 2, 3), np.uint8)
    image[:, 1] = np.array([100, 100, 200, 200, 0, 40, 80, 80])[:, None]
    averages = np.array([100, 200, 20, 80])
    expected = averages[:, None] * np.array([0, 0.25, 0.75, 1])
    np.testing.assert_array_equal(resized(image, 4, 4)[..., 0], expected)
    transposed = resized(image.transpose(1, 0, 2), 4, 4)
    np.testing.assert_array_equal(transposed[..., 0], expected.T)


def test_an_image_that_has_the_size_is_kept():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resized(image, 5, 7), image)


def test_covering_crops_the_center_of_what_just_covers():
    image = np.zeros((8, 16, 3), np.uint8)
    image[:, 4:12] = 200
    np.testing.assert_array_equal(covering(image, 4, 4), np.full((4, 4, 3), 200))
    assert covering(gradient(10, 33), 30, 20).shape == (30, 20, 3)


@pytest.mark.parametrize(
    ('shape', 'resized_to', 'corner'),
    [
        ((375, 500), (256, 341), (16, 58)),  # 341.3, and 58.5
        ((403, 300), (343, 256), (60, 16)),  # 343.9, and 59.5
        ((300, 449), (256, 383), (16, 80)),  # 383.1, and 79.5
        ((256, 256), (256, 256), (16, 16)),
    ],
)
def test_the_center_crop_rounds_as_torchvisions(shape, resized_to, corner):
    assert center_window(shape, 224, 224) == (resized_to, corner)


def test_the_center_crop_is_seven_eighths_of_the_shorter_side():
    image = gradient(64, 80)
    # 64 rows are what covers 64x64; the center 56 of the 64 rows and 80 columns remain.
    np.testing.assert_array_equal(center_crop(image, 56, 56), image[4:60, 12:68])
    assert center_crop(image, 28, 28).shape == (28, 28, 3)


def test_bicubic_is_pillows():
    """As torchvision's RandomResizedCrop of a Pillow image: cut, then resized with antialiasing."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (60, 50, 3), np.uint8)
    boxes = np.array([[[3, 4, 40, 30], [10, 0, 12, 50], [0, 0, 60, 50]]])
    found = cut([image], boxes, resize=24, interpolation='bicubic')
    for (y, x, h, w), patch in zip(boxes[0], found[0], strict=True):
        expected = Image.fromarray(image).crop((x, y, x + w, y + h)).resize((24, 24), 3)
        np.testing.assert_array_equal(patch, np.asarray(expected))
    assert np.any(found != cut([image], boxes, resize=24))
