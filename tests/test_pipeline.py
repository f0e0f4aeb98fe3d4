import contextlib
import itertools

import numpy as np
import pytest

from bagssl_jax import device_crops
from bagssl_jax.data import crops, pipeline, sources
from bagssl_jax.data.geometry import PatchGeometry, grid_places
from bagssl_jax.data.views import GridPatches, RandomPatches, Whole
from bagssl_jax.errors import InputError, UnreadableImage

RANGES = {'scale': (0.3, 1.0), 'ratio': (0.75, 1.5), 'interpolation': 'area'}


def make_crops(name='fixed', count=3, size=0, scale=0.25, resize=0):
    settings = RANGES if name == 'multiscale' else {}
    return crops.make_crops(name, count, PatchGeometry(size, scale, resize), settings)


PATCHES = make_crops(size=4)
GEOMETRY = PatchGeometry(size=4, scale=0.0, resize=0)


class FilesSource:
    """The images of another source, read one by one; some of them cannot be."""

    in_memory = False
    class_names = ('a',)
    image_shape = None
    fingerprint = ''

    def __init__(self, source, broken=()):
        self._source = source
        self._broken = broken

    def __len__(self):
        return len(self._source)

    def read(self, numbers):
        for number in numbers.tolist():
            if number in self._broken:
                raise UnreadableImage(f'{self.name(number)} is broken')
        images, labels = self._source.read(numbers)
        return sources.Records(list(images), labels)

    def name(self, index):
        return f'{index}.png'


@pytest.fixture(scope='module')
def source():
    """Twenty-two 8x8 images; red is the image's number, green and blue the pixel's place."""
    images = np.zeros((22, 8, 8, 3), np.uint8)
    images[..., 0] = np.arange(22)[:, None, None]
    images[..., 1:] = np.stack(np.indices((8, 8)), axis=-1)[None]
    return sources.ArraySource(images, np.arange(22), tuple('abcdefghijklmnopqrstuv'))


def take_all(source, count, random_crops=PATCHES, **options):
    options = {'seed': 0, 'batch_size': 4, **options}
    batches = pipeline.train_batches(source, random_crops, **options)
    with contextlib.closing(batches):
        return list(itertools.islice(batches, count))


def take(source, count, random_crops=PATCHES, **options):
    return [batch.inputs['patches'] for batch in take_all(source, count, random_crops, **options)]


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


@pytest.mark.slow
def test_a_later_start_with_other_workers_continues_the_same_batches(source):
    np.testing.assert_array_equal(take(source, 12, workers=2)[7:], take(source, 5, start=7))
    np.testing.assert_array_equal(take(source, 12)[7:], take(source, 5, start=7, workers=1))


def test_files_give_the_same_batches_as_arrays(source):
    np.testing.assert_array_equal(take(FilesSource(source), 7), take(source, 7))


@pytest.mark.parametrize(
    ('random_crops', 'size', 'tolerance'),
    [
        (make_crops(size=4), 4, 0),
        (make_crops(size=4, resize=4), 4, 0),
        (make_crops(resize=6), 4, 1),
        (make_crops('multiscale', resize=5), 0, 1),
    ],
)
def test_patches_cut_on_the_device_are_those_cut_on_the_host(source, random_crops, size, tolerance):
    host = take(source, 7, random_crops)
    files = take_all(FilesSource(source), 7, random_crops, crop_on='device')
    inputs = [batch.inputs for batch in take_all(source, 7, random_crops, crop_on='device')]
    assert inputs[0].keys() == {'images', 'boxes'}
    for of_files, expected in zip(files, inputs, strict=True):
        for key in expected:
            np.testing.assert_array_equal(of_files.inputs[key], expected[key])
    [(_, resize)] = random_crops.sizes
    for patches, sent in zip(host, inputs, strict=True):
        cut = device_crops.cut(sent['images'], sent['boxes'], size=size, resize=resize)
        cut = np.asarray(cut)
        assert cut.dtype == np.uint8
        assert abs(cut.astype(int) - patches).max() <= tolerance


@pytest.mark.parametrize('random_crops', [make_crops(), make_crops('multiscale', resize=5)])
@pytest.mark.parametrize('shard', [(0, 1), (1, 2)])
def test_of_resident_images_the_numbers_are_given_and_none_is_read(source, random_crops, shard):
    class Unread(sources.ArraySource):
        def read(self, numbers):
            raise AssertionError('read')

    unread = Unread(source.images, source.labels, source.class_names)
    batches = take_all(unread, 7, random_crops, shard=shard, crop_on='resident')
    expected = take_all(source, 7, random_crops, shard=shard, crop_on='device')
    for batch, sent in zip(batches, expected, strict=True):
        assert batch.inputs.keys() == {'numbers', 'boxes'}
        assert batch.inputs['numbers'].dtype == np.int32
        images = source.images[batch.inputs['numbers']]
        np.testing.assert_array_equal(images, sent.inputs['images'])
        np.testing.assert_array_equal(batch.inputs['boxes'], sent.inputs['boxes'])
        np.testing.assert_array_equal(batch.unreadable, sent.unreadable)


def test_an_unreadable_image_is_replaced_by_the_next_and_reported(source):
    intact = take_all(FilesSource(source), 10)
    batches = take_all(FilesSource(source, broken=(5, 6)), 10)
    assert (np.concatenate([batch.unreadable for batch in intact]) == -1).all()
    for batch, expected in zip(batches, intact, strict=True):
        was = np.array(numbers(expected.inputs['patches']))
        expected_now = np.where((was == 5) | (was == 6), 7, was)
        assert numbers(batch.inputs['patches']) == expected_now.tolist()
        np.testing.assert_array_equal(batch.unreadable, np.where(was != expected_now, was, -1))


@pytest.mark.parametrize('workers', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_source_without_a_readable_image_is_refused(source, workers):
    broken = FilesSource(source, broken=range(22))
    with pytest.raises(UnreadableImage, match=r'\.png is broken; and so it is with the next 21'):
        take(broken, 1, workers=workers)


def test_resized_patches_have_the_size_asked_for(source):
    assert take(source, 1, make_crops(count=2, resize=6))[0].shape == (4, 2, 6, 6, 3)


def test_multiscale_crops_are_resized_to_one_size(source):
    first, again = (take(source, 2, make_crops('multiscale', resize=5)) for _ in range(2))
    assert first[0].shape == (4, 3, 5, 5, 3)
    np.testing.assert_array_equal(first, again)
    # The range of the green channel, which is the pixel's row, tells how high a crop is.
    heights = np.ptp(np.stack(first)[..., 1].astype(int), axis=(-1, -2)).ravel()
    assert len(set(heights)) > 2


def test_a_source_smaller_than_a_batch_is_refused(source):
    with pytest.raises(InputError, match=r'data.batch_size=23 is more than the 22 training images'):
        pipeline.steps_per_epoch(len(source), 23)


@pytest.mark.parametrize('workers', [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize('make_source', [lambda source: source, FilesSource])
def test_bags_come_once_each_and_in_order(source, make_source, workers, monkeypatch):
    monkeypatch.setattr(pipeline, 'IMAGES_PER_WORKER', 10)
    view = GridPatches(GEOMETRY, grid_places(4))
    batches = list(pipeline.bag_batches(make_source(source), view, batch_size=5, workers=workers))
    assert [len(batch.labels) for batch in batches] == [5, 5, 5, 5, 2]
    patches, labels, unreadable = map(np.concatenate, zip(*batches, strict=True))
    np.testing.assert_array_equal(labels, np.arange(22))
    np.testing.assert_array_equal(patches[:, 0], source.images[:, :4, :4])
    np.testing.assert_array_equal(patches[:, 3], source.images[:, 4:, 4:])
    assert len(unreadable) == 0


def test_few_images_are_not_worth_a_worker(source, monkeypatch):
    asked = []
    real = pipeline.prefetched
    monkeypatch.setattr(
        pipeline,
        'prefetched',
        lambda batches, threads, workers: asked.append(workers) or real(batches, threads, 0),
    )
    for each in (pipeline.IMAGES_PER_WORKER, 10):
        monkeypatch.setattr(pipeline, 'IMAGES_PER_WORKER', each)
        list(pipeline.bag_batches(source, Whole(4, 4), batch_size=5, workers=8))
    assert asked == [0, 2]


def test_unreadable_images_have_no_bag(source):
    broken = FilesSource(source, broken=(0, 1, 2, 3, 4, 21))
    view = GridPatches(GEOMETRY, grid_places(4))
    batches = list(pipeline.bag_batches(broken, view, batch_size=5, on_error='skip'))
    assert [batch.unreadable.tolist() for batch in batches] == [[0, 1, 2, 3, 4], [], [], [], [21]]
    patches, labels, _ = map(np.concatenate, zip(*batches, strict=True))
    np.testing.assert_array_equal(labels, np.arange(5, 21))
    np.testing.assert_array_equal(patches[:, 0], source.images[5:21, :4, :4])
    with pytest.raises(UnreadableImage, match=r'\d\.png is broken'):
        list(pipeline.bag_batches(broken, view, batch_size=5))


def test_the_whole_image_is_a_bag_of_one(source):
    [batch] = pipeline.bag_batches(source, Whole(8, 8), batch_size=22)
    np.testing.assert_array_equal(batch.patches[:, 0], source.images)


def test_random_places_depend_on_the_seed_and_the_image_alone(source):
    def bags(batch_size, seed, count=3):
        view = RandomPatches(GEOMETRY, count, seed)
        batches = pipeline.bag_batches(source, view, batch_size=batch_size)
        return np.concatenate([batch.patches for batch in batches])

    first = bags(5, 0)
    np.testing.assert_array_equal(first, bags(7, 0))
    np.testing.assert_array_equal(first, bags(5, 0, count=8)[:, :3])
    assert (first != bags(5, 1)).any()
    places = {tuple(patch[0, 0, 1:]) for bag in first for patch in bag}
    assert len(places) > 15  # of the 25 that there are


def test_an_image_smaller_than_a_patch_counts_as_unreadable(source):
    class Mixed(FilesSource):
        def read(self, numbers):
            images, labels = super().read(numbers)
            lower = [x[:3] if i == 9 else x for i, x in zip(numbers, images, strict=True)]
            return sources.Records(lower, labels)

    batches = take_all(Mixed(source), 5)
    assert [i for batch in batches for i in batch.unreadable.tolist() if i >= 0] in ([], [9])
    view = GridPatches(GEOMETRY, grid_places(4))
    with pytest.raises(UnreadableImage, match=r'9\.png: is 3x8 pixels, smaller than patches of 4'):
        list(pipeline.bag_batches(Mixed(source), view, batch_size=5))
    batches = pipeline.bag_batches(Mixed(source), view, batch_size=5, on_error='skip')
    assert [batch.unreadable.tolist() for batch in batches] == [[], [9], [], [], []]


def test_what_to_do_at_an_unreadable_image_is_one_of_two_words(source):
    view = GridPatches(GEOMETRY, grid_places(4))
    with pytest.raises(InputError, match="unknown on_error 'stpo': choose from stop, skip"):
        list(pipeline.bag_batches(source, view, batch_size=5, on_error='stpo'))
