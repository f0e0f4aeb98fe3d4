import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from bagssl_jax.data import sources
from bagssl_jax.errors import InputError

SHARED = pathlib.Path(__file__).resolve().parents[2] / 'shared' / 'tfds'


class Squares(tfds.core.GeneratorBasedBuilder):
    """Squares of one grey each, 10 times their number; every fifth is larger in 'mixed'."""

    VERSION = tfds.core.Version('1.2.0')

    def _info(self):
        features = {
            'image': tfds.features.Image(shape=(None, None, 3), encoding_format='png'),
            'label': tfds.features.ClassLabel(names=['dark', 'light']),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples(20), 'mixed': self._generate_examples(10, 9)}

    def _generate_examples(self, count, fifth=6):
        for i in range(count):
            side = fifth if i % 5 == 4 else 6
            image = Image.fromarray(np.full((side, side, 3), 10 * i, np.uint8))
            yield i, {'image': image, 'label': int(i >= count // 2)}


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
    """A directory that holds `squares`, prepared as ArrayRecord."""
    directory = tmp_path_factory.mktemp('tfds')
    builder = Squares(data_dir=str(directory), file_format='array_record')
    builder.download_and_prepare()
    return str(directory)


def load(split='train', name='squares', in_memory=True, **options):
    return sources.load(name, split, in_memory=in_memory, **options)


@pytest.mark.parametrize('in_memory', [True, False])
def test_a_prepared_tfds_data_set_is_read(data_dir, in_memory):
    source = load(data_dir=data_dir, in_memory=in_memory)
    assert len(source) == 20
    assert source.class_names == ('dark', 'light')
    records = [source[i] for i in range(20)]
    # TFDS shuffles while preparing; the grey tells which image a record is.
    greys = [int(record['image'][0, 0, 0]) for record in records]
    assert sorted(greys) == list(range(0, 200, 10))
    assert [record['label'] for record in records] == [int(grey >= 100) for grey in greys]
    assert all(record['image'].shape == (6, 6, 3) for record in records)


def test_sub_splits_select_records(data_dir):
    every = load(data_dir=data_dir)
    part = load('train[25%:50%]', data_dir=data_dir)
    np.testing.assert_array_equal(part.images, every.images[5:10])


def test_images_of_several_sizes_stay_encoded_or_are_refused(data_dir):
    source = load('mixed', data_dir=data_dir, in_memory=False)
    assert {source[i]['image'].shape for i in range(10)} == {(6, 6, 3), (9, 9, 3)}
    with pytest.raises(InputError, match=r'several sizes.*data.in_memory=False'):
        load('mixed', data_dir=data_dir)


def test_photos_sub_splits():
    every = load(name='photos', data_dir='')
    part = load('train[:10%]+test[-5:]', name='photos', data_dir='')
    assert len(part) == 320 + 5
    np.testing.assert_array_equal(part.images[:320], every.images[:320])
    test = load('test', name='photos', data_dir='')
    np.testing.assert_array_equal(part.labels[320:], test.labels[-5:])


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'split': 'tran', 'name': 'photos'}, "Unknown split 'tran'.*train.*test"),
        ({'split': 'train[:10', 'name': 'photos'}, r"split 'train\[:10'.*Unrecognized"),
        ({'split': 'train[:0]', 'name': 'photos'}, 'holds no image'),
        ({'split': 'train[20:10]'}, 'holds no image'),
        ({'split': 'test'}, "Unknown split 'test'.*mixed"),
        ({'name': 'cifar1'}, "'cifar1'.*holds squares.*photos or folder.*prepare cifar1"),
        (
            {'name': 'cifar10', 'data_dir': ''},
            "'cifar10': choose photos or folder, or give data.dir=DIR",
        ),
        ({'data_dir': '/no/such/place'}, 'data.dir=/no/such/place is not a directory'),
    ],
)
def test_bad_names_are_refused_in_one_line(data_dir, arguments, message):
    with pytest.raises(InputError, match=message) as error:
        load(**{'data_dir': data_dir, **arguments})
    assert '\n' not in str(error.value)


def test_a_directory_without_data_sets_says_so(tmp_path):
    (tmp_path / 'squares' / '1.0.0').mkdir(parents=True)
    with pytest.raises(InputError, match='it holds no prepared data set'):
        load(data_dir=str(tmp_path))


def test_a_file_format_without_random_access_is_refused(data_dir, tmp_path):
    old = pathlib.Path(data_dir) / 'squares' / '1.2.0' / 'dataset_info.json'
    new = tmp_path / 'squares' / '1.2.0'
    new.mkdir(parents=True)
    for name in ('features.json', 'label.labels.txt'):
        (new / name).write_bytes(old.with_name(name).read_bytes())
    (new / old.name).write_text(old.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(InputError, match=r"tfrecord.*file_format='array_record'"):
        load(data_dir=str(tmp_path))


@pytest.mark.skipif(not SHARED.is_dir(), reason='the prepared CIFAR-10 is not on this machine')
def test_cifar10_from_the_shared_directory():
    source = load('test[:50]', name='cifar10', data_dir=str(SHARED))
    assert source.images.shape == (50, 32, 32, 3)
    assert source.class_names[:2] == ('airplane', 'automobile')
    assert set(source.labels) <= set(range(10))
