"""The host's cuts are the standard: exactly without a resize, within one grey level with it."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from bagssl_jax import device_crops
from bagssl_jax.data import cut as on_host
from bagssl_jax.parallel import DATA_AXIS, batch_sharded, make_mesh

cut = jax.jit(device_crops.cut, static_argnames=('size', 'resize'))


def make_images(b, h, w):
    return np.random.default_rng(0).integers(0, 256, (b, h, w, 3), dtype=np.uint8)


def boxes_of_all_sizes(b, p, h, w):
    """Sides from 1 to those of the image, anywhere."""
    rng = np.random.default_rng(1)
    sides = rng.integers(1, (h + 1, w + 1), (b, p, 2))
    places = rng.integers(0, (h, w) - sides + 1)
    return np.concatenate([places, sides], axis=-1, dtype=np.int32)


def squares(b, p, h, w, side):
    places = np.random.default_rng(2).integers(0, (h - side + 1, w - side + 1), (b, p, 2))
    return np.concatenate([places, np.full((b, p, 2), side)], axis=-1, dtype=np.int32)


@pytest.mark.parametrize('side', [1, 7, 20])
def test_without_a_resize_the_pixels_are_the_hosts(side):
    images, boxes = make_images(6, 20, 27), squares(6, 9, 20, 27, side)
    patches = cut(images, boxes, size=side, resize=0)
    assert patches.dtype == np.uint8
    np.testing.assert_array_equal(patches, on_host.cut(images, boxes, resize=0))
    # A resize to the same side, known in advance or not, changes nothing.
    for size in (side, 0):
        np.testing.assert_array_equal(cut(images, boxes, size=size, resize=side), patches)


def assert_near(device, host):
    """Equal but for where a fraction is rounded; cv2 drops some, by 0.12 of a level on average."""
    error = np.asarray(device).astype(int) - host
    assert abs(error).max() <= 1
    assert abs(error).mean() < 0.2


@pytest.mark.parametrize('resize', [1, 8, 17, 32, 50])
def test_any_box_is_resized_as_on_the_host(resize):
    # 2,500 patches each, of which both sides shrink, one of them, or none
    images, boxes = make_images(50, 40, 48), boxes_of_all_sizes(50, 50, 40, 48)
    patches = cut(images, boxes, size=0, resize=resize)
    assert patches.dtype == np.uint8
    assert_near(patches, on_host.cut(images, boxes, resize=resize))


@pytest.mark.parametrize(('side', 'resize'), [(16, 32), (24, 9), (7, 16), (1, 5)])
def test_squares_of_a_known_side_are_resized_as_on_the_host(side, resize):
    images, boxes = make_images(10, 30, 24), squares(10, 10, 30, 24, side)
    host = on_host.cut(images, boxes, resize=resize)
    for size in (side, 0):
        assert_near(cut(images, boxes, size=size, resize=resize), host)


@pytest.mark.parametrize('size', [0, 3])
def test_thirds_are_averaged_by_their_shares(size):
    image = np.zeros((1, 3, 3, 3), np.uint8)
    image[:] = np.array([0, 90, 240])[:, None, None]
    # (0 + 90/2) / 1.5 and (90/2 + 240) / 1.5
    expected = np.broadcast_to(np.array([30, 190])[:, None, None], (2, 2, 3))
    patches = cut(image, np.array([[[0, 0, 3, 3]]]), size=size, resize=2)
    np.testing.assert_array_equal(patches[0, 0], expected)


def test_one_axis_shrinks_while_the_other_grows():
    rows = np.array([100, 100, 200, 200, 0, 40, 80, 80], np.uint8)
    image = np.full((12, 5, 3), 255, np.uint8)
    image[3:11, 2] = 0
    image[3:11, 3] = rows[:, None]
    # Pairs of rows are averaged; four centers lie at -0.25, 0.25, 0.75, 1.25 of two columns.
    averages = np.array([100, 200, 20, 80])
    expected = averages[:, None] * np.array([0, 0.25, 0.75, 1])
    box = np.array([[[3, 2, 8, 2]]])
    for patches in (cut(image[None], box, size=0, resize=4), on_host.cut([image], box, resize=4)):
        np.testing.assert_array_equal(patches[0, 0], np.stack([expected] * 3, axis=-1))


@pytest.mark.parametrize('options', [{'size': 8, 'resize': 0}, {'size': 0, 'resize': 16}])
def test_every_device_cuts_its_part_of_the_batch(options):
    images, boxes = make_images(16, 12, 12), squares(16, 3, 12, 12, 8)
    mesh = make_mesh()
    local = functools.partial(device_crops.cut, **options)
    sharded = jax.jit(
        jax.shard_map(local, mesh=mesh, in_specs=P(DATA_AXIS), out_specs=P(DATA_AXIS))
    )
    on_devices = jax.device_put((images, boxes), batch_sharded(mesh))
    patches = sharded(*on_devices)
    assert len(patches.addressable_shards) == 8
    np.testing.assert_array_equal(patches, cut(images, boxes, **options))


def test_boxes_of_unknown_size_take_a_resize():
    with pytest.raises(ValueError, match='take a resize'):
        cut(make_images(1, 8, 8), squares(1, 1, 8, 8, 4), size=0, resize=0)
