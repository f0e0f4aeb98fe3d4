import collections
import importlib.util
import io
import os
import subprocess
import sys
import tarfile

import cv2
import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from conftest import read_one

from bagssl_jax.data import photos
from bagssl_jax.data.preparation import prepare
from bagssl_jax.data.prepared import load_prepared
from bagssl_jax.data.subsets import SUBSETS
from bagssl_jax.errors import InputError

TEST_SET = 'tiles_of_grey'


def png(*values):
    """An image of 1 x n grey pixels."""
    return cv2.imencode('.png', np.array([values], np.uint8))[1].tobytes()


class TilesOfGrey(tfds.core.GeneratorBasedBuilder):
    """Twelve images of one pixel; `failure` is raised, or called, in the middle of making them."""

    VERSION = tfds.core.Version('1.0.0')
    failure = None

    def _info(self):
        features = {'image': tfds.features.Image(shape=(1, 1, 3), encoding_format='png')}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples()}

    def _generate_examples(self):
        for i in range(12):
            if i == 6 and self.failure:
                raise self.failure
            yield i, {'image': png(i)}


with tfds.core.registered.skip_registration():

    class Imagenet2012(tfds.core.GeneratorBasedBuilder):
        """A small stand-in with twice the classes of ImageNet-100, their number in a pixel.

        The other pixel counts the images of a class: 3 to train, 2 to validate.
        """

        VERSION = tfds.core.Version('5.1.0')
        name = 'imagenet2012'
        train_images = 3  # a class

        def _info(self):
            features = {
                'image': tfds.features.Image(shape=(1, 2, 3), encoding_format='png'),
                'label': tfds.features.ClassLabel(names=class_names()),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            counts = {'train': self.train_images, 'validation': 2}
            splits = {split: self._generate_examples(count) for split, count in counts.items()}
            return {**splits, 'test': [(0, {'image': png(0, 0), 'label': -1})]}

        def _generate_examples(self, count):
            for label in range(200):
                for i in range(count):
                    yield f'{label} {i}', {'image': png(label, i), 'label': label}


def class_names():
    """Those of ImageNet-100, each followed by another one."""
    return [
        name for listed in SUBSETS['imagenet100'].class_names for name in (listed, f'x{listed}')
    ]


def make_imagenet(directory, train_images=3):
    builder = Imagenet2012(data_dir=str(directory), file_format='array_record')
    builder.train_images = train_images
    builder.download_and_prepare()


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory):
    """A directory with the stand-in, and the index of ImageNet-100 over it."""
    directory = tmp_path_factory.mktemp('imagenet')
    make_imagenet(directory)
    prepare('imagenet100', str(directory))
    return str(directory)


@pytest.fixture
def no_tensorflow(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorflow', None)


def test_a_data_set_is_prepared_once(tmp_path, capsys):
    for word in ('is', 'was already'):
        prepare(TEST_SET, str(tmp_path))
        out = capsys.readouterr().out.splitlines()[-2:]
        assert out == [
            f'{TEST_SET} {word} prepared in {tmp_path}/{TEST_SET}/1.0.0: train 12',
            f'use it with --config.data.name={TEST_SET} --config.data.dir={tmp_path}',
        ]
    source = load_prepared(TEST_SET, 'train', str(tmp_path))
    assert sorted(int(image[0, 0, 0]) for image in source.read(np.arange(12)).images) == list(
        range(12)
    )


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('cifar1', "'cifar1' is not in the TFDS catalogue: did you mean cifar10 or"),
        ('imagenet10', 'did you mean imagenet100'),
        ('qwertz', 'see tensorflow.org/datasets'),
        ('imagenet_resized/9x9', '9x9 not found.* 64x64'),
        ('cifar10:9.9.9', '9.9.9, only: 3.0.2'),
        ('imdb_reviews', 'imdb_reviews is not an image-classification data set'),
        ('cifar10', r"preparing cifar10 needs TensorFlow.*pip install '.\[prepare\]'"),
        (
            'imagenet2012',
            'ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in DIR/downloads/manual: .*'
            'register on https://image-net.org',
        ),
        ('chexpert', 'chexpert needs files in DIR/downloads/manual: .*CheXpert'),
        ('imagenet100', "'imagenet2012': not prepared.*run python -m bagssl_jax.prepare"),
    ],
)
def test_what_cannot_be_prepared_is_refused_in_one_line(tmp_path, no_tensorflow, name, message):
    with pytest.raises(InputError, match=message.replace('DIR', str(tmp_path))) as error:
        prepare(name, str(tmp_path))
    assert '\n' not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_only_the_archives_that_are_missing_are_named(tmp_path):
    manual = tmp_path / 'downloads' / 'manual'
    manual.mkdir(parents=True)
    (manual / 'ILSVRC2012_img_train.tar').touch()
    with pytest.raises(InputError, match=r'imagenet2012 needs ILSVRC2012_img_val.tar in'):
        prepare('imagenet2012', str(tmp_path))


@pytest.mark.parametrize(
    ('failure', 'message'),
    [
        (requests.ConnectionError('no route\nto host'), 'no route to host; the same command tries'),
        (OSError(28, 'No space left on device'), 'No space left on device'),
        (ModuleNotFoundError('x', name='tensorflow'), 'needs TensorFlow'),
        (ModuleNotFoundError("No module named 'tifffile'"), "No module named 'tifffile'"),
        (tfds.download.DownloadError('404'), '404'),
        (
            tfds.core.download.download_manager.NonMatchingChecksumError('sum'),
            'damaged: sum',
        ),
    ],
)
def test_a_failure_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, failure, message):
    monkeypatch.setattr(TilesOfGrey, 'failure', failure)
    with pytest.raises(InputError, match=message) as error:
        prepare(TEST_SET, str(tmp_path))
    assert '\n' not in str(error.value)
    assert not list(tmp_path.rglob('*array_record*'))


def test_an_interrupted_preparation_loads_nothing_and_can_be_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(TilesOfGrey, 'failure', KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        prepare(TEST_SET, str(tmp_path))
    with pytest.raises(InputError, match='not prepared'):
        load_prepared(TEST_SET, 'train', str(tmp_path))
    monkeypatch.setattr(TilesOfGrey, 'failure', None)
    prepare(TEST_SET, str(tmp_path))
    assert len(load_prepared(TEST_SET, 'train', str(tmp_path))) == 12


def classes_and_counters(source):
    """What the pixels of the stand-in say: the class's name, and which of its images."""
    pixels = [image[0, :, 0] for image in source.read(np.arange(len(source))).images]
    names = class_names()
    return [(names[label], int(counter)) for label, counter in pixels]


@pytest.mark.parametrize(('split', 'count'), [('train', 3), ('validation', 2)])
def test_imagenet100_has_all_images_of_its_classes_and_no_other(imagenet, split, count):
    source = load_prepared('imagenet100', split, imagenet)
    found = classes_and_counters(source)
    names = SUBSETS['imagenet100'].class_names
    assert sorted(found) == [(name, i) for name in names for i in range(count)]
    assert source.class_names == names
    labels = source.read(np.arange(len(source))).labels
    assert [source.class_names[label] for label in labels] == [name for name, _ in found]
    assert source.image_shape == (1, 2)


def test_sub_splits_count_the_records_of_the_subset(imagenet):
    train, validation = (
        classes_and_counters(load_prepared('imagenet100', split, imagenet))
        for split in ('train', 'validation')
    )
    source = load_prepared('imagenet100', 'validation[:5]+train[10%:20%]', imagenet)
    assert classes_and_counters(source) == validation[:5] + train[30:60]
    assert [source.name(i) for i in (4, 5)] == [
        'imagenet100 validation #4',
        'imagenet100 train #30',
    ]
    labels = source.read(np.array([7, 2])).labels
    assert labels.tolist() == [read_one(source, 7)[1], read_one(source, 2)[1]]


def test_the_index_is_made_once(imagenet, capsys):
    prepare('imagenet100', imagenet)
    assert 'imagenet100 was already prepared' in capsys.readouterr().out
    assert load_prepared('imagenet100', 'train', imagenet).name(0) == 'imagenet100 train #0'
    with pytest.raises(InputError, match=r'Unknown split .test.*train, validation'):
        load_prepared('imagenet100', 'test', imagenet)


def test_the_index_must_be_there_and_of_the_same_records(tmp_path):
    command = 'make it with python -m bagssl_jax.prepare imagenet100 --data_dir='
    make_imagenet(tmp_path)
    with pytest.raises(InputError, match=f'index of imagenet100 is missing: {command}'):
        load_prepared('imagenet100', 'train', str(tmp_path))
    prepare('imagenet100', str(tmp_path))
    first = load_prepared('imagenet100', 'train', str(tmp_path)).fingerprint

    (tmp_path / 'imagenet2012').rename(tmp_path / 'old')
    make_imagenet(tmp_path, train_images=4)
    with pytest.raises(InputError, match=f'was made from another imagenet2012: {command}'):
        load_prepared('imagenet100', 'train', str(tmp_path))
    prepare('imagenet100', str(tmp_path))
    source = load_prepared('imagenet100', 'train', str(tmp_path))
    assert len(source) == 400
    assert source.fingerprint != first


def test_the_class_list_is_that_of_contrastive_multiview_coding():
    names = SUBSETS['imagenet100'].class_names
    assert len(set(names)) == 100
    catalogue = tfds.core.tfds_path('datasets/imagenet2012/labels.txt').read_text().split()
    assert set(names) <= set(catalogue)
    # The first three and the last three of its file, which is in no order; three of the others.
    listed = {'n02869837', 'n01749939', 'n02488291', 'n03424325', 'n01855672', 'n02090622'}
    assert listed <= set(names)
    assert not {'n01440764', 'n02123159', 'n15075141'} & set(names)


def run(*arguments):
    return subprocess.run(
        [sys.executable, '-m', 'bagssl_jax.prepare', *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '2'},
        timeout=240,
    )


@pytest.mark.parametrize(
    ('arguments', 'status', 'message'),
    [
        (['cifar10'], 2, 'error: --data_dir is missing: give --data_dir=DIR'),
        (['--data_dir=x'], 2, 'error: NAME is missing'),
    ],
)
def test_the_program_ends_on_bad_input_with_one_line(arguments, status, message):
    done = run(*arguments)
    assert done.returncode == status
    assert done.stderr.startswith(message)
    assert done.stderr.count('\n') == 1


def photographs():
    """JPEG files of three classes, the second one of ImageNet-100: WordNet id -> files."""
    jpegs = [
        cv2.imencode('.jpg', photos.load_photograph(name)[..., ::-1])[1].tobytes()
        for name in list(photos.PHOTOGRAPHS)[:5]
    ]
    return {'n01440764': jpegs[:2], 'n02869837': jpegs[2:4], 'n15075141': jpegs[4:]}


def tar(files):
    """The archive of files, name -> bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec('tensorflow'), reason='TensorFlow is missing')
def test_the_catalogues_imagenet_from_archives_of_its_format(tmp_path):
    manual = tmp_path / 'downloads' / 'manual'
    manual.mkdir(parents=True)
    classes = photographs()
    train = {f'{name}_{i}.JPEG': file for name in classes for i, file in enumerate(classes[name])}
    synsets = {
        f'{name}.tar': tar({key: file for key, file in train.items() if key.startswith(name)})
        for name in classes
    }
    files = list(train.values())
    validation = {f'ILSVRC2012_val_{i + 1:08d}.JPEG': file for i, file in enumerate(files)}
    (manual / 'ILSVRC2012_img_train.tar').write_bytes(tar(synsets))
    (manual / 'ILSVRC2012_img_val.tar').write_bytes(tar(validation))
    done = run('imagenet2012', f'--data_dir={tmp_path}')
    assert done.returncode == 0, done.stderr
    assert 'train 5, validation 5' in done.stdout

    pixels = {
        cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR_RGB).tobytes(): name
        for name, group in classes.items()
        for file in group
    }
    source = load_prepared('imagenet2012', 'train', str(tmp_path))
    for i in range(5):
        image, label = read_one(source, i)
        assert source.class_names[label] == pixels[image.tobytes()]
    source = load_prepared('imagenet2012', 'validation', str(tmp_path))
    # The true labels of ILSVRC2012_val_00000001.JPEG to 5.
    labels = ['n01751748', 'n09193705', 'n02105855', 'n04263257', 'n03125729']
    found = [source.class_names[label] for label in source.read(np.arange(5)).labels]
    assert collections.Counter(found) == collections.Counter(labels)

    prepare('imagenet100', str(tmp_path))
    subset = load_prepared('imagenet100', 'train', str(tmp_path))
    assert [pixels[read_one(subset, i)[0].tobytes()] for i in range(2)] == ['n02869837'] * 2
    assert len(subset) == 2
