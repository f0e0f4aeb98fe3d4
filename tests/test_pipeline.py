import itertools

import numpy as np
import pytest

from bagssl_jax.data import pipeline, sources
from bagssl_jax.errors import InputError

PATCHES = pipeline.RandomPatches(count=3, size=4, scale=0.0, resize=0)


@pytest.fixture(scope='module')
def source():
    """Twenty-two 8x8 images; red is the image's number, green and blue the pixel's place."""
    images = np.zeros((22, 8, 8, 3), np.uint8)
    images[..., 0] = np.arange(22)[:, None, None]
    images[..., 1:] = np.stack(np.indices((8, 8)), axis=-1)[None]
    return sources.ArraySource(images, np.arange(22), tuple('abcdefghijklmnopqrstuv'))


def take(source, count, transform=PATCHES, **options):
    options = {'seed': 0, 'batch_size': 4, **options}
    return list(itertools.islice(pipeline.train_batches(source, transform, **options), count))


def numbers(batch):
    """Which image each bag of a batch is of; all its patches must agree."""
    of_patches = batch[:, :, 0, 0, 0]
    assert (of_patches == of_patches[:, :1]).all()
    return of_patches[:, 0].tolist()


def test_batches_are_whole_patches_of_one_image(source):
    batch = take(source, 1)[0]
    assert batch.shape == (4, 3, 4, 4, 3)
    assert batch.dtype == np.uint8
    numbers(batch)
    for patch in batch.reshape(-1, 4, 4, 3):
        y, x = patch[0, 0, 1:]
        np.testing.assert_array_equal(patch, source.images[patch[0, 0, 0], y : y + 4, x : x + 4])


def test_an_epoch_repeats_no_image_and_drops_the_last_partial_batch_alone(source):
    of_batches = list(map(numbers, take(source, 15)))
    epochs = [[*itertools.chain(*of_batches[i : i + 5])] for i in (0, 5, 10)]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == 20
    assert epochs[0] != epochs[1] != epochs[2]


def test_crops_differ_between_epochs_and_patches(source):
    batches = np.stack(take(source, 25)).reshape(-1, 3, 4, 4, 3)
    places = {}
    for bag in batches:
        places.setdefault(int(bag[0, 0, 0, 0]), []).append(bag[:, 0, 0, 1:].tolist())
    repeated = sum(a == b for bags in places.values() for a, b in itertools.combinations(bags, 2))
    assert repeated <= 1  # 3 patches at 25 places each: one chance in 15,625 for each of 220 pairs


def test_order_depends_on_the_seed(source):
    first, again, other = (take(source, 3, seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


def test_a_later_start_continues_the_same_batches(source):
    np.testing.assert_array_equal(take(source, 12)[7:], take(source, 5, start=7))


@pytest.mark.parametrize('hosts', [2, 4])
def test_shards_in_order_are_the_global_batch(source, hosts):
    shards = [take(source, 7, shard=(host, hosts)) for host in range(hosts)]
    together = np.concatenate(shards, axis=1)
    np.testing.assert_array_equal(together, take(source, 7))


@pytest.mark.slow
def test_workers_do_not_change_the_batches(source):
    expected = take(source, 8)
    for workers in (1, 2):
        np.testing.assert_array_equal(take(source, 8, workers=workers), expected)


def test_resized_patches_have_the_size_asked_for(source):
    transform = pipeline.RandomPatches(count=2, size=0, scale=0.25, resize=6)
    assert take(source, 1, transform)[0].shape == (4, 2, 6, 6, 3)


PATCH_KEYS = {'count': 3, 'size': 0, 'scale': 0.25, 'resize': 5}
RANGES = {'scale': (0.3, 1.0), 'ratio': (0.75, 1.5)}


def test_multiscale_crops_are_resized_to_one_size(source):
    transform = pipeline.make_crops('multiscale', PATCH_KEYS, RANGES)
    first, again = take(source, 2, transform), take(source, 2, transform)
    assert first[0].shape == (4, 3, 5, 5, 3)
    np.testing.assert_array_equal(first, again)
    # The range of the green channel, which is the pixel's row, tells how high a crop is.
    heights = np.ptp(np.stack(first)[..., 1].astype(int), axis=(-1, -2)).ravel()
    assert len(set(heights)) > 2


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
        pipeline.make_crops(name, {**PATCH_KEYS, **patches}, {**RANGES, **ranges})


def test_a_source_smaller_than_a_batch_is_refused(source):
    with pytest.raises(InputError, match=r'data.batch_size=23 is more than the 22 training images'):
        pipeline.steps_per_epoch(source, 23)


def test_bags_come_once_each_and_in_order(source):
    transform = pipeline.GridPatches(count=4, size=4, scale=0.0, resize=0)
    batches = list(pipeline.bag_batches(source, transform, batch_size=5))
    assert [len(labels) for _, labels in batches] == [5, 5, 5, 5, 2]
    patches, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    np.testing.assert_array_equal(labels, np.arange(22))
    np.testing.assert_array_equal(patches[:, 0], source.images[:, :4, :4])
    np.testing.assert_array_equal(patches[:, 3], source.images[:, 4:, 4:])


def test_the_whole_image_is_a_bag_of_one(source):
    patches, _ = next(pipeline.bag_batches(source, pipeline.Whole(8, 8), batch_size=22))
    np.testing.assert_array_equal(patches[:, 0], source.images)


def test_whole_images_of_another_size_cover_the_one_asked_for():
    image = np.zeros((8, 16, 3), np.uint8)
    image[:, 4:12] = 200
    patches, _ = pipeline.Whole(4, 4).map({'image': image, 'label': 0})
    np.testing.assert_array_equal(patches, np.full((1, 4, 4, 3), 200))


def test_patches_that_may_differ_in_size_are_refused():
    pipeline.check_patches(PATCH_KEYS, in_memory=False)
    with pytest.raises(InputError, match=r'patches\.resize=SIDE'):
        pipeline.check_patches({**PATCH_KEYS, 'resize': 0}, in_memory=False)
    with pytest.raises(InputError, match=r'patches\.resize=-1'):
        pipeline.check_patches({**PATCH_KEYS, 'resize': -1}, in_memory=True)
