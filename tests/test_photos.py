import numpy as np
import pytest

from bagssl_jax.data import photos


def covered(split, name):
    """Marks the pixels of a photograph that its tiles of `split` touch: bool [h w]."""
    label = list(photos.PHOTOGRAPHS).index(name)
    height, width = photos.load_photograph(name).shape[:2]
    mask = np.zeros((height, width), bool)
    for y, x in photos.tile_corners(height, width, split=split, seed=label):
        mask[y : y + photos.TILE, x : x + photos.TILE] = True
    return mask


@pytest.mark.parametrize('name', photos.PHOTOGRAPHS)
def test_no_pixel_is_in_both_splits(name):
    train, test = covered('train', name), covered('test', name)
    assert train.any()
    assert test.any()
    assert not (train & test).any()


@pytest.mark.parametrize('split', ['train', 'test'])
def test_tiles_are_cut_where_the_corners_say(split):
    images, labels = photos.tiles(split)
    for label, name in enumerate(photos.PHOTOGRAPHS):
        photograph = photos.load_photograph(name)
        corners = photos.tile_corners(*photograph.shape[:2], split=split, seed=label)
        of_class = images[labels == label]
        for i in (0, len(corners) // 2, len(corners) - 1):
            y, x = corners[i]
            np.testing.assert_array_equal(of_class[i], photograph[y : y + 48, x : x + 48])


def test_classes_are_balanced_and_alternate():
    for split, count in (('train', 400), ('test', 100)):
        images, labels = photos.tiles(split)
        assert images.shape == (8 * count, 48, 48, 3)
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(np.bincount(labels), [count] * 8)
        np.testing.assert_array_equal(labels[:8], range(8))


def test_a_quarter_of_the_blocks_is_for_testing():
    for name in photos.PHOTOGRAPHS:
        height, width = photos.load_photograph(name).shape[:2]
        blocks = {
            split: {
                (y // photos.BLOCK, x // photos.BLOCK)
                for y, x in photos.tile_corners(height, width, split=split, seed=0)
            }
            for split in ('train', 'test')
        }
        share = len(blocks['test']) / (len(blocks['test']) + len(blocks['train']))
        assert 0.2 <= share <= 0.3


def test_tiles_are_deterministic():
    first, second = photos.tiles('test')[0], photos.tiles('test')[0]
    np.testing.assert_array_equal(first, second)


def test_photographs_have_a_like_area_and_are_in_colour():
    for name in photos.PHOTOGRAPHS:
        photograph = photos.load_photograph(name)
        assert abs(photograph.shape[0] * photograph.shape[1] / photos.AREA - 1) < 0.01
        assert (photograph.max(axis=-1) != photograph.min(axis=-1)).any()


def test_red_is_the_first_channel():
    red, _, blue = photos.load_photograph('retina').mean(axis=(0, 1))
    assert red > 2 * blue  # a retina is red
