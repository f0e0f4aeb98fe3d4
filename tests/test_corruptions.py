"""The corruptions are those of CIFAR-10-C and ImageNet-C."""

import numpy as np
import pytest
from conftest import REPOSITORY

from bagssl_jax.data.corruptions import CIFAR, CORRUPTIONS, IMAGENET, SEVERITIES, Corrupted, corrupt
from bagssl_jax.data.geometry import PatchGeometry, grid_places
from bagssl_jax.data.views import GridPatches, Whole
from bagssl_jax.errors import InputError

# Every 37th and 1,511th number of what the authors' programs (github.com/hendrycks/robustness at
# 8190fe3) make of `picture`, by severity: after np.random.seed(severity), with the imagecorruptions
# package's motion blur in place of ImageMagick's, and salt and pepper of the legacy generator.
PUBLISHED = np.load(REPOSITORY / 'tests' / 'data' / 'corruptions.npz')
DETERMINED = ('defocus_blur', 'zoom_blur', 'brightness', 'contrast', 'pixelate', 'jpeg_compression')


def picture(height, width):
    """Smooth colours with an edge and fine texture: uint8 [h w 3]."""
    y, x = np.mgrid[:height, :width] / 32
    channels = [np.sin(3 * x + 2 * y), np.cos(4 * y - x), np.sin(5 * x * y)]
    image = 128 + 70 * np.stack(channels, axis=-1)
    image[height // 3 : height // 2] += 40
    image += 8 * ((np.arange(height)[:, None] + np.arange(width)) % 3 - 1)[..., None]
    return np.clip(image, 0, 255).astype(np.uint8)


class Legacy:
    """A generator whose draws are those of np.random after np.random.seed(seed)."""

    def __init__(self, seed):
        state = np.random.RandomState(seed)
        self.uniform, self.poisson = state.uniform, state.poisson
        self.normal = lambda loc=0.0, scale=1.0, size=None: state.normal(loc, scale, size)
        self.random = lambda shape: state.uniform(size=shape)
        self.integers = lambda low, high, size: state.randint(low, high, size)


@pytest.mark.parametrize(('side', 'table', 'every'), [(32, CIFAR, 37), (224, IMAGENET, 1511)])
@pytest.mark.parametrize('name', [name for name in CORRUPTIONS if name != 'frost'])
def test_equal_to_the_published(name, side, table, every):
    for severity, expected in zip(SEVERITIES, PUBLISHED[f'{name}_{side}'], strict=True):
        strengths = table[name][severity - 1]
        strengths = strengths if isinstance(strengths, tuple) else (strengths,)
        image = picture(side, side)
        found = CORRUPTIONS[name](image / 255, Legacy(severity), *strengths)
        found = np.clip(found, 0, 1).reshape(-1)[::every] * 255
        # Rounded down there; and a grey level more where float32 was between.
        assert np.abs(found - 0.5 - expected).max() < 2.6, severity
        assert np.abs(np.floor(found + 1e-4) - expected).mean() < 0.2
        if name in DETERMINED:
            whole = corrupt(image, name, severity).reshape(-1)[::every]
            np.testing.assert_allclose(whole, expected, atol=1)


@pytest.mark.parametrize('name', CORRUPTIONS)
def test_any_size_and_the_same_again(name):
    for image in (picture(9, 20), picture(96, 70)):
        first = corrupt(image, name, 5, seed=3, number=8)
        assert (first.shape, first.dtype) == (image.shape, np.uint8)
        np.testing.assert_array_equal(first, corrupt(image, name, 5, seed=3, number=8))
        others = [{'seed': 4, 'number': 8}, {'seed': 3, 'number': 9}]
        same = [(corrupt(image, name, 5, **other) == first).all() for other in others]
        assert all(same) if name in DETERMINED else not any(same)
        changed = [np.abs(corrupt(image, name, s).astype(int) - image).mean() for s in (1, 5)]
        assert changed[0] > 0
        if name not in ('glass_blur', 'elastic_transform'):  # whose strengths trade off
            assert changed[0] < changed[1]


def test_glass_only_moves_pixels_nearby():
    """By one, where the blur is of no effect."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(32)[:, None] * 8, np.arange(32) * 8
    found = corrupt(image, 'glass_blur', 1).astype(int)
    moved = (found - image)[..., :2] // 8
    assert set(moved.ravel().tolist()) == {-1, 0}


def test_a_corrupted_view_cuts_corrupted_images():
    images = [picture(40, 31), picture(20, 32)]
    numbers = np.array([5, 2])
    for view in (Whole(16, 16), GridPatches(PatchGeometry(8, 0, 0), grid_places(4))):
        expected = view.cut(
            [
                corrupt(image, 'snow', 3, seed=1, number=number)
                for image, number in zip(images, (5, 2), strict=True)
            ],
            numbers,
        )
        found = Corrupted(view, 'snow', 3, seed=1)
        np.testing.assert_array_equal(found.cut(images, numbers), expected)
        assert found.min_side == view.min_side
    stacked = np.stack([images[0], images[0]])
    found = Corrupted(view, 'fog', 2, seed=1).cut(stacked, numbers)
    assert (found[0] != found[1]).any()


def test_what_there_is_not_is_refused():
    with pytest.raises(InputError, match=r"unknown corruption 'rain': choose from gaussian_noise"):
        corrupt(picture(8, 8), 'rain', 1)
    with pytest.raises(InputError, match='severity 6 of a corruption: give 1 to 5'):
        corrupt(picture(8, 8), 'fog', 6)
