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


@pytest.mark.parametrize(
    ('size', 'scale', 'message'),
    [
        (33, 0.25, r'33x33 .*patches.size=33.* does not fit .* 32x40'),
        (0, 1.0, r'patches.scale=1.0'),
        (0, 1.5, r'patches.scale=1.5 is not a share'),
        (0, 0.0, r'patches.scale=0.0 is not a share'),
        (-3, 0.25, r'patches.size=-3'),
    ],
)
def test_a_patch_that_does_not_fit_is_refused(size, scale, message):
    with pytest.raises(InputError, match=message):
        crops.patch_side(32, 40, size=size, scale=scale)


def test_random_boxes_reach_every_place_equally():
    rng = np.random.default_rng(0)
    boxes = crops.random_boxes(rng, 10, 12, side=8, count=15_000)
    assert (boxes[:, 2:] == 8).all()
    places, counts = np.unique(boxes[:, :2], axis=0, return_counts=True)
    np.testing.assert_array_equal(places, [(y, x) for y in range(3) for x in range(5)])
    # 1,000 expected at each of 15 places, standard deviation 31
    assert abs(counts - 1000).max() < 150


WHOLE_RANGE = {'scale': (0.08, 1.0), 'ratio': (3 / 4, 4 / 3)}


def test_random_resized_boxes_have_torchvisions_areas_ratios_and_places():
    rng = np.random.default_rng(0)
    boxes = crops.random_resized_boxes(
        rng, 400, 400, scale=(0.1, 0.4), ratio=(0.5, 2), count=20_000
    )
    y, x, h, w = boxes.T
    assert (boxes >= 0).all()
    assert (y + h <= 400).all()
    assert (x + w <= 400).all()
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


def test_boxes_that_do_not_fit_are_drawn_again():
    rng = np.random.default_rng(0)
    boxes = crops.random_resized_boxes(rng, 100, 100, **WHOLE_RANGE, count=5_000)
    y, x, h, w = boxes.T
    assert (y + h <= 100).all()
    assert (x + w <= 100).all()
    # torchvision's loop, one box at a time, has the same mean area
    areas = []
    for _ in range(5_000):
        for _ in range(10):
            area = 100 * 100 * rng.uniform(0.08, 1.0)
            aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            width, height = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
            if 0 < width <= 100 and 0 < height <= 100:
                areas.append(width * height)
                break
    np.testing.assert_allclose((h * w).mean(), np.mean(areas), rtol=0.03)


@pytest.mark.parametrize(
    ('height', 'width', 'box'),
    [(10, 400, [0, 193, 10, 13]), (400, 10, [193, 0, 13, 10])],
)
def test_where_nothing_fits_it_is_the_largest_center_crop(height, width, box):
    rng = np.random.default_rng(0)
    boxes = crops.random_resized_boxes(
        rng, height, width, scale=(0.9, 1.0), ratio=(3 / 4, 4 / 3), count=3
    )
    np.testing.assert_array_equal(boxes, [box] * 3)


def test_grid_is_even_and_reaches_the_edges():
    boxes = crops.grid_boxes(48, 32, side=16, count=9)
    np.testing.assert_array_equal(np.unique(boxes[:, 0]), [0, 16, 32])
    np.testing.assert_array_equal(np.unique(boxes[:, 1]), [0, 8, 16])
    assert len(np.unique(boxes, axis=0)) == 9


def test_one_box_is_the_center_crop():
    np.testing.assert_array_equal(crops.grid_boxes(48, 32, side=16, count=1), [[16, 8, 16, 16]])


@pytest.mark.parametrize('count', [0, 2, 15, -4])
def test_a_count_that_is_not_square_is_refused(count):
    with pytest.raises(InputError, match='not square'):
        crops.grid_boxes(48, 48, side=16, count=count)


def test_cut_keeps_the_pixels():
    image = gradient(20, 30)
    boxes = np.array([[3, 5, 4, 4], [16, 26, 4, 4]])
    patches = crops.cut(image, boxes, resize=0)
    assert patches.shape == (2, 4, 4, 3)
    np.testing.assert_array_equal(patches[0], image[3:7, 5:9])
    np.testing.assert_array_equal(patches[1], image[16:20, 26:30])


def test_shrinking_averages_areas():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    shrunk = crops.cut(image, np.array([[0, 0, 16, 16]]), resize=4)[0]
    means = image.reshape(4, 4, 4, 4, 3).mean(axis=(1, 3))
    assert abs(shrunk - means).max() <= 0.5 + 1e-6


def test_enlarging_is_bilinear_at_pixel_centers():
    image = np.zeros((1, 2, 3), np.uint8)
    image[0, 1] = 200
    # Centers of the 4 new pixels lie at -0.25, 0.25, 0.75, 1.25 of the 2 old ones.
    np.testing.assert_array_equal(crops.resized(image, 1, 4)[0, :, 0], [0, 50, 150, 200])
