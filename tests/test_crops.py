import math

import numpy as np
import pytest

from bagssl_jax.data import crops
from bagssl_jax.data.geometry import PatchGeometry
from bagssl_jax.errors import InputError


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


FIXED = crops.FixedCrops(20, PatchGeometry(size=0, scale=0.25, resize=0))
MULTISCALE = crops.MultiscaleCrops(count=20, resize=8, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))


def test_fixed_boxes_reach_every_place_equally():
    boxes = place(crops.FixedCrops(500, PatchGeometry(8, 0.0, 0)), [10] * 30, [12] * 30)
    assert (boxes[..., 2:] == 8).all()
    places, counts = np.unique(boxes[..., :2].reshape(-1, 2), axis=0, return_counts=True)
    np.testing.assert_array_equal(places, [(y, x) for y in range(3) for x in range(5)])
    # 1,000 expected at each of 15 places, standard deviation 31
    assert abs(counts - 1000).max() < 150


def test_the_smallest_and_largest_draws_are_the_outermost_places():
    fixed = crops.FixedCrops(2, PatchGeometry(8, 0.0, 0))
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


GEOMETRY = PatchGeometry(size=0, scale=0.25, resize=5)
RANGES = {'scale': (0.3, 1.0), 'ratio': (0.75, 1.5), 'interpolation': 'area'}


def test_crops_are_made_of_the_configuration():
    fixed = crops.make_crops('fixed', 3, GEOMETRY, {})
    assert (fixed.count, fixed.sizes) == (3, ((3, 5),))
    assert (place(fixed, [40], [40])[..., 2:] == 20).all()
    multiscale = crops.make_crops('multiscale', 3, GEOMETRY, RANGES)
    assert (multiscale.count, multiscale.sizes) == (3, ((3, 5),))
    h, w = np.moveaxis(place(multiscale, [400] * 50, [400] * 50)[..., 2:], -1, 0)
    assert (h * w).min() > 0.29 * 400**2
    assert abs(np.log(w / h) - np.log(1.125**0.5)).max() < np.log(2) / 2 + 0.02


@pytest.mark.parametrize(
    ('name', 'resize', 'message'),
    [
        ('multi', 5, "unknown crops 'multi': choose from fixed, multiscale, multicrop"),
        ('multiscale', 0, r'patches\.resize'),
    ],
)
def test_unusable_crops_are_refused(name, resize, message):
    geometry = PatchGeometry(size=0, scale=0.25, resize=resize)
    with pytest.raises(InputError, match=message):
        crops.make_crops(name, 3, geometry, RANGES)


def test_an_interpolation_that_is_none():
    with pytest.raises(InputError, match=r"interpolation 'cubic': choose from area, bic"):
        crops.make_crops('multiscale', 3, GEOMETRY, {**RANGES, 'interpolation': 'cubic'})
