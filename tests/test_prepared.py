import pathlib
import pickle
import shutil

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import read_one
from PIL import Image

from bagssl_jax.data.datasets import Dataset
from bagssl_jax.data.prepared import find_prepared, load_prepared
from bagssl_jax.errors import InputError, UnreadableImage

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


IMAGE = tfds.features.Image(shape=(4, 5, 3), encoding_format='png')
LABEL = tfds.features.ClassLabel(names=['a', 'b', 'c'])
PIXELS = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
PNG = cv2.imencode('.png', PIXELS[..., ::-1])[1].tobytes()
GREY = tfds.features.Image(shape=(None, None, 1), encoding_format='png')
DEEP = tfds.features.Image(shape=(4, 5, 3), dtype=np.uint16, encoding_format='png')
# Of every configuration: the features, the only record, and supervised_keys.
LAYOUTS = {
    'unlabelled': ({'image': IMAGE}, {'image': PNG}, None),
    'one_label': ({'picture': IMAGE, 'kind': LABEL}, {'picture': PNG, 'kind': 1}, None),
    'two_labels': (
        {'image': IMAGE, 'coarse_label': LABEL, 'label': LABEL},
        {'image': PNG, 'coarse_label': 0, 'label': 1},
        None,
    ),
    'supervised': (
        {'photo': IMAGE, 'mask': IMAGE, 'label': LABEL, 'kind': LABEL},
        {'photo': PNG, 'mask': b'', 'label': 0, 'kind': 1},
        ('photo', 'kind'),
    ),
    'missing_label': ({'image': IMAGE, 'label': LABEL}, {'image': PNG, 'label': -1}, None),
    'two_images': ({'left': IMAGE, 'right': IMAGE}, {'left': PNG, 'right': PNG}, None),
    'ambiguous': ({'image': IMAGE, 'x': LABEL, 'y': LABEL}, {'image': PNG, 'x': 0, 'y': 0}, None),
    'no_image': ({'label': LABEL}, {'label': 0}, None),
    'deep': ({'image': DEEP}, {'image': PNG}, None),
    'grey': (
        {'image': GREY},
        {'image': cv2.imencode('.png', PIXELS[..., 0])[1].tobytes()},
        None,
    ),
    'damaged': ({'image': IMAGE}, {'image': b'no image'}, None),
}


class Layouts(tfds.core.GeneratorBasedBuilder):
    """One record each, of the features that its configuration names."""

    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in LAYOUTS]  # noqa: RUF012

    def _info(self):
        features, _, supervised = LAYOUTS[self.builder_config.name]
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=supervised,
        )

    def _split_generators(self, dl_manager):
        return {'train': [(0, LAYOUTS[self.builder_config.name][1])]}

    def _generate_examples(self):
        raise NotImplementedError


def make(builder, directory, **options):
    builder(data_dir=str(directory), file_format='array_record', **options).download_and_prepare()


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    """A directory that holds `squares` and every configuration of `layouts` as ArrayRecord."""
    directory = tmp_path_factory.mktemp('tfds')
    make(Squares, directory)
    for config in LAYOUTS:
        make(Layouts, directory, config=config)
    return str(directory)


def load(data_dir, split='train', name='squares', in_memory=True):
    return Dataset(name, data_dir, in_memory).images(split).source


def greys(source):
    """Squares are told apart by their grey; TFDS shuffles them while preparing."""
    return [int(image[0, 0, 0]) for image in source.read(np.arange(len(source))).images]


@pytest.mark.parametrize('in_memory', [True, False])
def test_a_prepared_tfds_data_set_is_read(data_dir, in_memory):
    source = load(data_dir, in_memory=in_memory)
    assert len(source) == 20
    assert source.class_names == ('dark', 'light')
    images, labels = source.read(np.arange(20))
    assert sorted(greys(source)) == list(range(0, 200, 10))
    assert labels.tolist() == [int(grey >= 100) for grey in greys(source)]
    assert all(image.shape == (6, 6, 3) for image in images)


def test_sub_splits_select_records(data_dir):
    every = load(data_dir)
    part = load(data_dir, 'train[25%:50%]')
    np.testing.assert_array_equal(part.images, every.images[5:10])


def test_images_of_several_sizes_stay_encoded_or_are_refused(data_dir):
    source = load(data_dir, 'mixed', in_memory=False)
    assert source.image_shape is None
    assert {image.shape for image in source.read(np.arange(10)).images} == {(6, 6, 3), (9, 9, 3)}
    with pytest.raises(InputError, match=r'several sizes.*data.in_memory=False'):
        load(data_dir, 'mixed')


def test_a_name_leads_back_to_its_record(data_dir):
    source = load_prepared('squares', 'train[10:12]+mixed[3:5]', data_dir)
    names = ['train #10', 'train #11', 'mixed #3', 'mixed #4']
    assert [source.name(i) for i in range(4)] == [f'squares {name}' for name in names]
    for i, name in enumerate(names):
        split, number = name.split(' #')
        alone = load_prepared('squares', f'{split}[{number}:{int(number) + 1}]', data_dir)
        np.testing.assert_array_equal(read_one(alone, 0)[0], read_one(source, i)[0])


@pytest.mark.parametrize(
    ('config', 'label', 'class_names'),
    [
        ('unlabelled', -1, ()),
        ('one_label', 1, ('a', 'b', 'c')),
        ('two_labels', 1, ('a', 'b', 'c')),
        ('supervised', 1, ('a', 'b', 'c')),
        ('missing_label', -1, ('a', 'b', 'c')),
    ],
)
def test_the_image_and_its_label_are_found(data_dir, config, label, class_names):
    source = load_prepared(f'layouts/{config}', 'train', data_dir)
    image, found = read_one(source, 0)
    np.testing.assert_array_equal(image, PIXELS)
    assert found == label
    assert source.class_names == class_names
    assert source.image_shape == (4, 5)
    assert source.name(0) == f'layouts/{config} train #0'


def test_grey_images_have_three_channels(data_dir):
    image, _ = read_one(load_prepared('layouts/grey', 'train', data_dir), 0)
    np.testing.assert_array_equal(image, np.repeat(PIXELS[..., :1], 3, axis=-1))


def test_a_damaged_image_is_named(data_dir):
    source = load_prepared('layouts/damaged', 'train', data_dir)
    with pytest.raises(UnreadableImage, match='layouts/damaged train #0'):
        read_one(source, 0)


def test_a_missing_file_is_named(data_dir, tmp_path):
    shutil.copytree(pathlib.Path(data_dir) / 'squares', tmp_path / 'squares')
    source = load_prepared('squares', 'mixed', str(tmp_path))
    next((tmp_path / 'squares' / '1.2.0').glob('*mixed*')).unlink()
    with pytest.raises(UnreadableImage, match=r'squares mixed #3: .*No such file'):
        read_one(source, 3)


def test_the_only_configuration_need_not_be_named(data_dir, tmp_path):
    place = pathlib.Path('layouts', 'one_label')
    shutil.copytree(data_dir / place, tmp_path / place)
    assert load_prepared('layouts', 'train', str(tmp_path)).name(0) == 'layouts/one_label train #0'
    with pytest.raises(InputError, match=r'several configurations: .*layouts/grey, layouts/mis'):
        load_prepared('layouts', 'train', data_dir)


def test_the_newest_version_is_taken_unless_one_is_given(data_dir, tmp_path):
    old = tmp_path / 'squares' / '1.2.0'
    shutil.copytree(pathlib.Path(data_dir) / 'squares' / '1.2.0', old)
    shutil.copytree(old, old.with_name('1.10.0'))
    info = old.with_name('1.10.0') / 'dataset_info.json'
    info.write_text(info.read_text().replace('"1.2.0"', '"1.10.0"'))
    shutil.copytree(old, old.with_name('incomplete.XYZ_1.11.0'))
    paths = [
        find_prepared(f'squares{version}', str(tmp_path)).path.name
        for version in ('', ':1.2.0', '/1.2.0')
    ]
    assert paths == ['1.10.0', '1.2.0', '1.2.0']
    with pytest.raises(InputError, match=r'not prepared in version 2.0.0, but in 1.10.0, 1.2.0'):
        find_prepared('squares:2.0.0', str(tmp_path))


def test_the_fingerprint_changes_with_the_records_alone(data_dir, tmp_path):
    def fingerprint(split='train', name='squares', directory=data_dir):
        return load_prepared(name, split, directory).fingerprint

    copy = tmp_path / 'squares' / '1.2.0'
    shutil.copytree(pathlib.Path(data_dir) / 'squares' / '1.2.0', copy)
    assert fingerprint() == fingerprint('train[:100%]') == fingerprint(directory=str(tmp_path))
    (copy / 'label.labels.txt').write_text('dark\nbright\n')
    different = {
        fingerprint(),
        fingerprint('train[:10]'),
        fingerprint('train[10:]'),
        fingerprint('mixed'),
        fingerprint(name='layouts/grey'),
        fingerprint(directory=str(tmp_path)),
    }
    assert len(different) == 6


def test_a_source_that_was_read_can_be_pickled(data_dir):
    source = load_prepared('squares', 'train', data_dir)
    before = greys(source)
    pickled = pickle.dumps(source)
    assert len(pickled) < 20_000
    assert greys(pickle.loads(pickled)) == before


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'split': 'train[20:10]'}, 'holds no image'),
        ({'split': 'test'}, "Unknown split 'test'.*mixed"),
        ({'name': 'cifar1'}, "'cifar1'.*holds layouts, squares.*photos or folder.*prepare cifar1"),
        ({'name': 'layouts/red'}, "'layouts/red'.*holds layouts, squares"),
        ({'name': 'layouts/two_images'}, 'not an image-classification data set.* 2 images'),
        ({'name': 'layouts/ambiguous'}, '1 images and 2 class labels'),
        ({'name': 'layouts/no_image'}, 'not an image-classification data set.* 0 images'),
        ({'name': 'layouts/deep'}, 'uint16'),
        ({'name': 'imagenet100'}, "'imagenet2012': not prepared"),
        (
            {'name': 'cifar10', 'data_dir': ''},
            "'cifar10': choose photos or folder, or give data.dir",
        ),
        ({'data_dir': '/no/such/place'}, 'data.dir=/no/such/place is not a directory'),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(data_dir, arguments, message):
    with pytest.raises(InputError, match=message) as error:
        load(**{'data_dir': data_dir, 'in_memory': False, **arguments})
    assert '\n' not in str(error.value)


def test_a_directory_without_data_sets_says_so(tmp_path):
    (tmp_path / 'squares' / '1.0.0').mkdir(parents=True)
    with pytest.raises(InputError, match='it holds no prepared data set'):
        load(str(tmp_path))


def test_a_file_format_without_random_access_is_refused(data_dir, tmp_path):
    old = pathlib.Path(data_dir) / 'squares' / '1.2.0' / 'dataset_info.json'
    new = tmp_path / 'squares' / '1.2.0'
    new.mkdir(parents=True)
    for name in ('features.json', 'label.labels.txt'):
        (new / name).write_bytes(old.with_name(name).read_bytes())
    (new / old.name).write_text(old.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(InputError, match=r"tfrecord.*file_format='array_record'"):
        load(str(tmp_path))


def test_remote_directories_are_searched_as_local_ones_are(data_dir, bucket):
    for path in pathlib.Path(data_dir, 'squares', '1.2.0').iterdir():
        bucket.pipe_file(f's3://bucket/tfds/squares/1.2.0/{path.name}', path.read_bytes())
    source = load_prepared('squares', 'train[:5]', 's3://bucket/tfds')
    assert len(source) == 5
    assert source.fingerprint == load_prepared('squares', 'train[:5]', data_dir).fingerprint
    with pytest.raises(InputError, match=r'in data.dir=s3://bucket/tfds \(it holds squares'):
        load_prepared('circles', 'train', 's3://bucket/tfds')
    # array_record has no reader for s3://; the address that it is given is the right one.
    with pytest.raises(UnreadableImage, match=r's3://bucket/tfds/squares/1.2.0/squares-train'):
        read_one(source, 0)


@pytest.mark.skipif(not SHARED.is_dir(), reason='the prepared CIFAR-10 is not on this machine')
def test_cifar10_from_the_shared_directory():
    source = load(str(SHARED), 'test[:50]', name='cifar10')
    assert source.images.shape == (50, 32, 32, 3)
    assert source.class_names[:2] == ('airplane', 'automobile')
    assert set(source.labels) <= set(range(10))
