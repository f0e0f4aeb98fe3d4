import contextlib
import os
import pickle

import cv2
import numpy as np
import psutil
import pytest
from ml_collections import ConfigDict

from bagssl_jax.data import folder
from bagssl_jax.data.datasets import Dataset, open_dataset
from bagssl_jax.data.views import Whole
from bagssl_jax.errors import InputError, UnreadableImage


@pytest.fixture
def directory(tmp_path):
    """Two classes of 6x6 PNG files, six to train on and two to test on."""
    for split, count in (('train', 3), ('test', 1)):
        for label, name in enumerate(('ape', 'bee')):
            place = tmp_path / split / name
            place.mkdir(parents=True)
            for i in range(count):
                cv2.imwrite(str(place / f'{i}.png'), np.full((6, 6, 3), 10 * i + label, np.uint8))
    return tmp_path


@contextlib.contextmanager
def listings(monkeypatch):
    """The directories that are listed meanwhile."""
    listed, scandir = [], os.scandir

    def recorded(path):
        listed.append(str(path))
        return scandir(path)

    with monkeypatch.context() as patched:
        patched.setattr(folder.os, 'scandir', recorded)
        yield listed


@contextlib.contextmanager
def files_read(monkeypatch):
    """The files that are read meanwhile, by name."""
    read, encoded = [], folder.FolderSource.encoded

    def recorded(source, index):
        read.append(source.name(index))
        return encoded(source, index)

    with monkeypatch.context() as patched:
        patched.setattr(folder.FolderSource, 'encoded', recorded)
        yield read


def test_a_split_is_opened_once(directory, monkeypatch):
    dataset = Dataset('folder', str(directory), in_memory=False)
    with listings(monkeypatch) as listed:
        train = dataset.images('train')
        assert f'{directory}/train/ape' in listed
        listed.clear()
        assert dataset.images('train') is train
        assert listed == []
        test = dataset.images('test')
        assert f'{directory}/test/ape' in listed
    assert (len(train), len(test)) == (6, 2)


def test_what_a_configuration_names_is_opened(directory):
    data = ConfigDict({'name': 'folder', 'dir': str(directory), 'in_memory': True, 'workers': 3})
    assert open_dataset(data) == Dataset('folder', str(directory), in_memory=True)
    with pytest.raises(InputError, match='nowhere is not a directory'):
        Dataset('folder', 'nowhere', in_memory=True).images('train')


def test_images_say_what_they_are_before_any_is_read(directory, monkeypatch):
    with files_read(monkeypatch) as read:
        train = Dataset('folder', str(directory), in_memory=True).images('train')
        assert train.title == 'folder train'
        assert train.class_names == ('ape', 'bee')
        assert train.name(0) == 'train/ape/0.png'
        assert train.describe() == {
            'images': 6,
            'classes': ['ape', 'bee'],
            'fingerprint': train.stored.fingerprint,
        }
        assert read == []


def test_images_are_decoded_once_at_their_first_use(directory, monkeypatch):
    train = Dataset('folder', str(directory), in_memory=True).images('train')
    with files_read(monkeypatch) as read:
        assert train.image_shape == train.example_shape() == (6, 6)  # which files do not tell
        assert set(read) == {train.name(i) for i in range(6)}
        read.clear()
        for _ in range(2):
            [bags] = train.bags(Whole(6, 6), batch_size=6)
            assert bags.patches[:, 0, 0, 0, 0].tolist() == [0, 1, 10, 11, 20, 21]
            assert bags.labels.tolist() == [0, 1, 0, 1, 0, 1]
        assert read == []
    assert train.source.in_memory


def test_images_that_stay_where_they_lie_are_read_every_time(directory, monkeypatch):
    train = Dataset('folder', str(directory), in_memory=False).images('train')
    assert train.source is train.stored
    assert train.image_shape is None
    assert train.example_shape() == (6, 6)
    with files_read(monkeypatch) as read:
        [bags] = train.bags(Whole(6, 6), batch_size=6, numbers=np.array([5, 0]))
        assert bags.labels.tolist() == [1, 0]
        assert read == [train.name(5), train.name(0)]


def test_a_part_is_decoded_alone(directory, monkeypatch):
    part = Dataset('folder', str(directory), in_memory=True).images('train').part(2, seed=0)
    with files_read(monkeypatch) as read:
        [bags] = part.bags(Whole(6, 6), batch_size=6)
        assert set(read) == {part.name(0), part.name(1)}
    assert (len(part), len(bags.labels)) == (2, 2)
    assert part.class_names == ('ape', 'bee')


def test_the_first_image_is_the_first_that_can_be_read(directory):
    train = Dataset('folder', str(directory), in_memory=False).images('train')
    (directory / train.name(0)).write_bytes(b'')
    assert train.first()[0, 0, 0] == 1
    for i in range(6):
        (directory / train.name(i)).write_bytes(b'')
    with pytest.raises(
        UnreadableImage, match=r'ape/0\.png: is empty; and so it is with the next 5'
    ):
        train.first()


def test_a_damaged_image_cannot_be_decoded_with_the_others(directory):
    train = Dataset('folder', str(directory), in_memory=True).images('train')
    (directory / train.name(3)).write_bytes(b'')
    message = f'{train.name(3)}: is empty. With data.in_memory=False, data.on_error=skip'
    with pytest.raises(InputError, match=message):
        train.bags(Whole(6, 6), batch_size=6)


def test_images_that_memory_does_not_hold_are_refused(directory, monkeypatch):
    memory = psutil.virtual_memory()._replace(available=100)
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: memory)
    with pytest.raises(InputError, match=r'folder train would take .*data\.in_memory=False'):
        _ = Dataset('folder', str(directory), in_memory=True).images('train').source


def test_photos_are_in_memory_either_way():
    for in_memory in (False, True):
        images = Dataset('photos', '', in_memory).images('test[:8]')
        assert images.source is images.stored
        assert images.source.in_memory
        assert images.image_shape == (48, 48)


def test_small_images_of_one_size_are_enlarged_and_no_others(directory):
    images = Dataset('photos', '', False).images('test[:2]')
    assert images.enlarged(48) is images
    large = images.enlarged(96)
    assert (large.image_shape, len(large), large.class_names) == ((96, 96), 2, images.class_names)
    bags = next(large.bags(Whole(96, 96), batch_size=2))
    small = next(images.bags(Whole(96, 96), batch_size=2))
    np.testing.assert_array_equal(bags.patches, small.patches)
    several = Dataset('folder', str(directory), False).images('train')
    assert several.enlarged(4096) is several


def test_what_workers_are_sent_can_be_pickled(directory):
    train = Dataset('folder', str(directory), in_memory=True).images('train')
    for source in (train.stored, train.source, train.part(2, seed=0).stored):
        again = pickle.loads(pickle.dumps(source))
        for mine, other in zip(
            source.read(np.array([1, 0])), again.read(np.array([1, 0])), strict=True
        ):
            np.testing.assert_array_equal(mine, other)
