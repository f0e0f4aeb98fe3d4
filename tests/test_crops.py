import math

import numpy as np
import pytest

from bagssl_jax.data import crops
from bagssl_jax.errors import InputError


def gradient(height, width):
    """An image whose pixel at (y, x) is (y, x, 0)."""
    y, x = np.indices((height, width))
    return np.stack([y, x, np.zeros_like(y)], axis=-1).astype(np.uint8)


def test_side_is_the_share_of_the_area():
    assert crops.patch_side(32, 32, size=0, scale=0.25) == 16
    assert crops.patch_side(40, 90, size=0, scale=0.25) == 30
    assert crops.patch_side(32, 32, size=7, scale=0.25) == 7
    # A quarter of 40x400 is 63x63, which no place holds.
    assert crops.patch_side(40, 400, size=0, scale=0.25) == 40


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
        crops.patch_side(32, 40, size=size, scale=scale)


def test_sides_are_those_of_each_image():
    sides = crops.patch_sides(np.array([32, 40, 3]), np.array([32, 90, 3]), size=0, scale=0.25)
    assert sides.tolist() == [16, 30, 2]
    # 1% of 5x5 pixels is half a pixel wide
    assert crops.patch_sides(np.array([5]), np.array([5]), size=0, scale=0.01).tolist() == [1]
    with pytest.raises(InputError, match=r'33x33 .* does not fit .* 40x32'):
        crops.patch_sides(np.array([64, 40, 10]), np.array([33, 32, 10]), size=33, scale=0.0)


def place(random_crops, heights, widths, seed=0):
    draws = random_crops.draw(np.random.default_rng(seed), len(heights))
    assert draws.shape[:2] == (len(heights), random_crops.count)
    boxes = random_crops.boxes(draws, heights, widths)
    assert boxes.dtype == np.int32
    return boxes


def assert_inside(boxes, heights, widths):
    y, x, h, w = np.moveaxis(boxes, -1, 0)
    assert (boxes >= 0).all()
    assert (h > 0).all()
    assert (w > 0).all()
    assert (y + h <= np.asarray(heights)[:, None]).all()
    assert (x + w <= np.asarray(widths)[:, None]).all()


FIXED = crops.FixedCrops(count=20, size=0, scale=0.25, resize=0)
MULTISCALE = crops.MultiscaleCrops(count=20, resize=8, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))


def test_fixed_boxes_reach_every_place_equally():
    boxes = place(crops.FixedCrops(count=500, size=8, scale=0.0, resize=0), [10] * 30, [12] * 30)
    assert (boxes[..., 2:] == 8).all()
    places, counts = np.unique(boxes[..., :2].reshape(-1, 2), axis=0, return_counts=True)
    np.testing.assert_array_equal(places, [(y, x) for y in range(3) for x in range(5)])
    # 1,000 expected at each of 15 places, standard deviation 31
    assert abs(counts - 1000).max() < 150


def test_the_smallest_and_largest_draws_are_the_outermost_places():
    fixed = crops.FixedCrops(count=2, size=8, scale=0.0, resize=0)
    draws = np.array([[[0.0, 0.0], [np.nextafter(1, 0)] * 2]])
    boxes = fixed.boxes(draws, [1000], [11])
    np.testing.assert_array_equal(boxes, [[[0, 0, 8, 8], [992, 3, 8, 8]]])


@pytest.mark.parametrize('random_crops', [FIXED, MULTISCALE])
def test_boxes_depend_on_the_draws_and_the_image_alone(random_crops):
    heights, widths = np.array([30, 500, 8, 64]), np.array([40, 300, 8, 64])
    boxes = place(random_crops, heights, widths)
    assert_inside(boxes, heights, widths)
    # A part of the draws gives that part of the boxes, whatever the other images are.
    draws = random_crops.draw(np.random.default_rng(0), 4)
    part = random_crops.boxes(draws[2:], heights[2:], widths[2:])
    np.testing.assert_array_equal(part, boxes[2:])


def test_fixed_boxes_have_the_side_of_their_image():
    boxes = place(FIXED, [30, 500], [40, 300])
    # sqrt(.25 * 30 * 40) = 17.3 and sqrt(.25 * 500 * 300) = 193.6
    np.testing.assert_array_equal(boxes[..., 2:], np.broadcast_to([[[17]], [[194]]], (2, 20, 2)))


def torchvision_box(draws, height, width, scale, ratio):
    """torchvision's RandomResizedCrop.get_params, with given random numbers."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for u, v in zip(draws[:10], draws[10:20], strict=True):
        target_area = height * width * (scale[0] + (scale[1] - scale[0]) * u)
        aspect = math.exp(low + (high - low) * v)
        w = round(math.sqrt(target_area * aspect))
        h = round(math.sqrt(target_area / aspect))
        if 0 < w <= width and 0 < h <= height:
            i, j = int(draws[20] * (height - h + 1)), int(draws[21] * (width - w + 1))
            return i, j, h, w
    if width / height < ratio[0]:
        w, h = width, round(width / ratio[0])
    elif width / height > ratio[1]:
        h, w = height, round(height * ratio[1])
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


def test_multiscale_boxes_are_torchvisions():
    heights, widths = [32, 100, 47, 200, 9, 1], [32, 100, 130, 40, 400, 1]
    random_crops = crops.MultiscaleCrops(200, 8, (0.3, 1.0), (3 / 4, 4 / 3))
    draws = random_crops.draw(np.random.default_rng(0), len(heights))
    boxes = random_crops.boxes(draws, heights, widths)
    assert_inside(boxes, heights, widths)
    for of_image, rows, height, width in zip(boxes, draws, heights, widths, strict=True):
        expected = [torchvision_box(u, height, width, (0.3, 1.0), (3 / 4, 4 / 3)) for u in rows]
        np.testing.assert_array_equal(of_image, expected)


def test_multiscale_boxes_have_even_areas_ratios_and_places():
    random_crops = crops.MultiscaleCrops(1000, 8, scale=(0.1, 0.4), ratio=(0.5, 2))
    boxes = place(random_crops, [400] * 20, [400] * 20)
    y, x, h, w = boxes.reshape(-1, 4).T
    # Where everything fits, the area is uniform and the logarithm of the aspect uniform.
    deciles = np.linspace(0.1, 0.9, 9)
    area = np.quantile(h * w / 400**2, deciles)
    np.testing.assert_allclose(area, 0.1 + 0.3 * deciles, atol=0.006)
    aspect = np.quantile(np.log(w / h), deciles)
    np.testing.assert_allclose(aspect, np.log(2) * (2 * deciles - 1), atol=0.03)
    # The place is uniform over what the size leaves.
    np.testing.assert_allclose(np.quantile(y / (400 - h), deciles), deciles, atol=0.02)
    np.testing.assert_allclose(np.quantile(x / (400 - w), deciles), deciles, atol=0.02)
    assert abs(np.corrcoef(y / (400 - h), x / (400 - w))[0, 1]) < 0.03


@pytest.mark.parametrize(
    ('height', 'width', 'box'),
    [(10, 400, [0, 193, 10, 13]), (400, 10, [193, 0, 13, 10])],
)
def test_where_nothing_fits_it_is_the_largest_center_crop(height, width, box):
    random_crops = crops.MultiscaleCrops(3, 8, scale=(0.9, 1.0), ratio=(3 / 4, 4 / 3))
    np.testing.assert_array_equal(place(random_crops, [height], [width]), [[box] * 3])


def test_a_crop_of_a_tiny_image_has_a_pixel():
    # No box of aspect 5 or more fits into 1x1 pixels, and a fifth of a pixel rounds to none.
    random_crops = crops.MultiscaleCrops(3, 8, scale=(0.9, 1.0), ratio=(5, 6))
    np.testing.assert_array_equal(place(random_crops, [1], [1]), [[[0, 0, 1, 1]] * 3])


PATCH_KEYS = {'count': 3, 'size': 0, 'scale': 0.25, 'resize': 5}
RANGES = {'scale': (0.3, 1.0), 'ratio': (0.75, 1.5)}


def test_crops_are_made_of_the_configuration():
    fixed = crops.make_crops('fixed', PATCH_KEYS, RANGES)
    assert (fixed.count, fixed.resize) == (3, 5)
    assert (place(fixed, [40], [40])[..., 2:] == 20).all()
    multiscale = crops.make_crops('multiscale', PATCH_KEYS, RANGES)
    assert (multiscale.count, multiscale.resize) == (3, 5)
    h, w = np.moveaxis(place(multiscale, [400] * 50, [400] * 50)[..., 2:], -1, 0)
    assert (h * w).min() > 0.29 * 400**2
    assert abs(np.log(w / h) - np.log(1.125**0.5)).max() < np.log(2) / 2 + 0.02


@pytest.mark.parametrize(
    ('name', 'patches', 'ranges', 'message'),
    [
        ('multi', {}, {}, "unknown crops 'multi': choose from fixed, multiscale"),
        ('multiscale', {'resize': 0}, {}, r'patches\.resize'),
        ('multiscale', {}, {'scale': (0.5, 0.1)}, r'multiscale\.scale=\(0\.5, 0\.1\)'),
        ('multiscale', {}, {'ratio': (0, 1)}, r'multiscale\.ratio=\(0, 1\)'),
    ],
)
def test_unusable_crops_are_refused(name, patches, ranges, message):
    with pytest.raises(InputError, match=message):
        crops.make_crops(name, {**PATCH_KEYS, **patches}, {**RANGES, **ranges})


def test_patches_that_may_differ_in_size_are_refused():
    scaled = {**PATCH_KEYS, 'resize': 0}
    for patches, image_shape in (
        (PATCH_KEYS, None),
        ({**scaled, 'size': 8}, None),
        (scaled, (32, 40)),
    ):
        crops.check_patches(patches, image_shape)
    with pytest.raises(InputError, match=r'patches\.resize=SIDE'):
        crops.check_patches(scaled, None)
    with pytest.raises(InputError, match=r'patches\.resize=-1'):
        crops.check_patches({**PATCH_KEYS, 'resize': -1}, (32, 40))


def test_grid_is_even_and_reaches_the_edges():
    boxes = crops.grid_boxes(48, 32, side=16, count=9)
    np.testing.assert_array_equal(np.unique(boxes[:, 0]), [0, 16, 32])
    np.testing.assert_array_equal(np.unique(boxes[:, 1]), [0, 8, 16])
    assert len(np.unique(boxes, axis=0)) == 9


def test_one_box_is_the_center_crop():
    np.testing.assert_array_equal(crops.grid_boxes(48, 32, side=16, count=1), [[16, 8, 16, 16]])


@pytest.mark.parametrize(
    ('count', 'rows'), [(2, [2]), (3, [1, 2]), (7, [2, 2, 3]), (20, [5, 5, 5, 5])]
)
def test_a_grid_may_have_any_count(count, rows):
    places = crops.grid_places(count)
    assert [(places[:, 0] == y).sum() for y in np.unique(places[:, 0])] == rows
    for y in np.unique(places[:, 0]):
        x = places[places[:, 0] == y, 1]
        np.testing.assert_allclose(x, [0.5] if len(x) == 1 else np.linspace(0, 1, len(x)))
    assert len(np.unique(places, axis=0)) == count


def test_smaller_grids_are_found_in_larger_ones():
    small, large = ({tuple(place) for place in crops.grid_places(n)} for n in (16, 256))
    assert small < large


@pytest.mark.parametrize('count', [0, -4])
def test_a_grid_of_none_is_refused(count):
    with pytest.raises(InputError, match='give 1 or more'):
        crops.grid_boxes(48, 48, side=16, count=count)


def assert_cut(patches, images, boxes):
    assert patches.dtype == np.uint8
    assert patches.shape[:2] == boxes.shape[:2]
    for bag, image, places in zip(patches, images, boxes, strict=True):
        for patch, (y, x, h, w) in zip(bag, places, strict=True):
            np.testing.assert_array_equal(patch, image[y : y + h, x : x + w])


BOXES = np.array([[[3, 5, 4, 6], [16, 24, 4, 6]], [[0, 0, 4, 6], [7, 9, 4, 6]]])


def test_cut_keeps_the_pixels():
    images = np.stack([gradient(20, 30), gradient(20, 30) + 100])
    assert_cut(crops.cut(images, BOXES, resize=0), images, BOXES)
    # The same images as a view of larger ones
    view = np.pad(images, [(0, 0), (1, 2), (3, 4), (0, 0)])[:, 1:-2, 3:-4]
    assert_cut(crops.cut(view, BOXES, resize=0), images, BOXES)


def test_images_may_differ_in_size():
    images = [gradient(20, 30), gradient(41, 17)]
    assert_cut(crops.cut(images, BOXES, resize=0), images, BOXES)


def test_boxes_are_resized_one_by_one():
    images = np.random.default_rng(0).integers(0, 256, (2, 24, 20, 3), dtype=np.uint8)
    boxes = np.array([[[1, 2, 16, 16], [0, 0, 24, 20]], [[5, 3, 8, 8], [20, 0, 3, 20]]])
    patches = crops.cut(images, boxes, resize=8)
    assert patches.shape == (2, 2, 8, 8, 3)
    np.testing.assert_array_equal(patches, crops.cut(list(images), boxes, resize=8))
    np.testing.assert_array_equal(patches[1, 0], images[1, 5:13, 3:11])
    np.testing.assert_array_equal(patches[0, 1], crops.resized(images[0], 8, 8))
    np.testing.assert_array_equal(patches[1, 1], crops.resized(images[1, 20:23], 8, 8))


def test_shrinking_averages_areas():
    images = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    shrunk = crops.cut(images, np.array([[[0, 0, 16, 16]]]), resize=4)[0, 0]
    means = images.reshape(4, 4, 4, 4, 3).mean(axis=(1, 3))
    assert abs(shrunk - means).max() <= 0.5 + 1e-6


def test_shrinking_averages_shares_of_pixels():
    image = np.array([0, 90, 240], np.uint8)[:, None, None] * np.ones((3, 3, 3), np.uint8)
    # (0 + 90/2) / 1.5 and (90/2 + 240) / 1.5
    shrunk = crops.resized(image, 2, 3)
    np.testing.assert_array_equal(shrunk[..., 0], [[30] * 3, [190] * 3])


def test_enlarging_is_bilinear_at_pixel_centers():
    image = np.zeros((1, 2, 3), np.uint8)
    image[0, 1] = 200
    # Centers of the 4 new pixels lie at -0.25, 0.25, 0.75, 1.25 of the 2 old ones.
    np.testing.assert_array_equal(crops.resized(image, 1, 4)[0, :, 0], [0, 50, 150, 200])


def test_every_axis_is_resized_in_its_own_way():
    image = np.zeros((8, 2, 3), np.uint8)
    image[:, 1] = np.array([100, 100, 200, 200, 0, 40, 80, 80])[:, None]
    averages = np.array([100, 200, 20, 80])
    expected = averages[:, None] * np.array([0, 0.25, 0.75, 1])
    np.testing.assert_array_equal(crops.resized(image, 4, 4)[..., 0], expected)
    transposed = crops.resized(image.transpose(1, 0, 2), 4, 4)
    np.testing.assert_array_equal(transposed[..., 0], expected.T)


def test_an_image_that_has_the_size_is_kept():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(crops.resized(image, 5, 7), image)


def test_covering_crops_the_center_of_what_just_covers():
    image = np.zeros((8, 16, 3), np.uint8)
    image[:, 4:12] = 200
    np.testing.assert_array_equal(crops.covering(image, 4, 4), np.full((4, 4, 3), 200))
    assert crops.covering(gradient(10, 33), 30, 20).shape == (30, 20, 3)


def test_the_center_crop_is_seven_eighths_of_the_shorter_side():
    image = gradient(64, 80)
    # 64 rows are what covers 64x64; the center 56 of the 64 rows and 80 columns remain.
    np.testing.assert_array_equal(crops.center_crop(image, 56, 56), image[4:60, 12:68])
    assert crops.center_crop(image, 28, 28).shape == (28, 28, 3)
