import os
import pathlib
import pickle
import socket

import cv2
import numpy as np
import pytest
from conftest import read_one

from bagssl_jax.data.folder import load_folder
from bagssl_jax.errors import InputError, UnreadableImage

PHOTOS = pathlib.Path(__file__).resolve().parents[2] / 'shared' / 'photos'


def write(path, grey=0, side=6):
    path.parent.mkdir(parents=True, exist_ok=True)
    done, data = cv2.imencode(path.suffix.lower(), np.full((side, side, 3), grey, np.uint8))
    assert done
    path.write_bytes(data.tobytes())


@pytest.fixture
def labelled(tmp_path):
    """Two classes of ten and five images to train on; a third class only in 'val'."""
    for i in range(10):
        write(tmp_path / 'train' / 'ape' / f'{i}.png', i)
    for i in range(5):
        write(tmp_path / 'train' / 'bee' / 'more' / f'{i}.bmp', 100 + i)
    write(tmp_path / 'val' / 'bee' / '0.png', 200)
    write(tmp_path / 'val' / 'cat' / '0.PNG', 201)
    return tmp_path


def names(source):
    return [source.name(i) for i in range(len(source))]


def test_files_are_read_with_labels_that_agree_between_splits(labelled):
    train, val = (load_folder(str(labelled), split) for split in ('train', 'val'))
    assert (len(train), len(val)) == (15, 2)
    assert train.class_names == val.class_names == ('ape', 'bee', 'cat')
    assert train.image_shape is None
    for i in range(15):
        image, label = read_one(train, i)
        folder, number = train.name(i).split('/')[1], int(pathlib.Path(train.name(i)).stem)
        assert label == ('ape', 'bee').index(folder)
        np.testing.assert_array_equal(image, np.full((6, 6, 3), number + 100 * label))
    assert val.read(np.arange(2)).labels.tolist() == [1, 2]
    assert names(val) == ['val/bee/0.png', 'val/cat/0.PNG']


def test_any_part_of_a_split_has_its_share_of_every_class(labelled):
    part = load_folder(str(labelled), 'train[:6]')
    assert part.labels.tolist() == [0, 1, 0, 0, 1, 0]
    assert names(part)[:3] == ['train/ape/0.png', 'train/bee/more/0.bmp', 'train/ape/1.png']
    both = load_folder(str(labelled), 'train[:20%]+val')
    assert names(both) == [*names(part)[:3], 'val/bee/0.png', 'val/cat/0.PNG']


def test_folders_without_classes_have_no_labels(tmp_path):
    for i in range(3):
        write(tmp_path / f'{i}.webp', i)
        write(tmp_path / 'more' / 'unlabelled' / f'{i}.jpeg', i)
    for path, split in ((tmp_path / 'more', 'unlabelled'), (tmp_path / 'more/unlabelled', 'train')):
        source = load_folder(str(path), split)
        assert source.class_names == ()
        assert source.read(np.arange(3)).labels.tolist() == [-1] * 3


def test_other_files_and_hidden_ones_are_passed_over(labelled):
    before = names(load_folder(str(labelled), 'train'))
    for name in ('.DS_Store', 'train/Thumbs.db', 'train/ape/notes.txt', 'README.md'):
        (labelled / name).write_text('x')
    write(labelled / '__MACOSX' / 'train' / 'ape' / '._0.png')
    write(labelled / 'train' / 'ape' / '._1.png')
    write(labelled / '.cache' / 'ape' / '1.png')
    (labelled / 'devkit' / 'data').mkdir(parents=True)
    source = load_folder(str(labelled), 'train')
    assert names(source) == before
    assert source.class_names == ('ape', 'bee', 'cat')


def test_only_regular_files_are_images(labelled):
    before = load_folder(str(labelled), 'train')
    os.mkfifo(labelled / 'train' / 'ape' / 'pipe.png')
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(labelled / 'train' / 'ape' / 'socket.png'))
        assert load_folder(str(labelled), 'train').names == before.names


def test_paths_as_people_type_them(labelled, monkeypatch):
    expected = load_folder(str(labelled), 'train')
    monkeypatch.setenv('HOME', str(labelled.parent))
    monkeypatch.chdir(labelled.parent)
    for path in (f'{labelled}/', f'~/{labelled.name}', labelled.name, f'./{labelled.name}/'):
        source = load_folder(path, 'train')
        assert source.fingerprint == expected.fingerprint
        assert read_one(source, 14)[0].shape == (6, 6, 3)


def test_a_linked_folder_and_any_file_name_are_read(tmp_path):
    write(tmp_path / 'elsewhere' / 'a.png', 7)
    (tmp_path / 'data' / 'train').mkdir(parents=True)
    (tmp_path / 'data' / 'train' / 'été').symlink_to(tmp_path / 'elsewhere')
    os.rename(tmp_path / 'elsewhere' / 'a.png', os.fsencode(tmp_path / 'elsewhere') + b'/\xff.png')
    source = load_folder(str(tmp_path / 'data'), 'train')
    assert source.class_names == ('été',)
    assert read_one(source, 0)[0][0, 0, 0] == 7
    assert os.fsencode(source.name(0)) == 'train/été/'.encode() + b'\xff.png'


def test_a_link_that_leads_in_a_circle_is_refused(labelled):
    (labelled / 'train' / 'ape' / 'back').symlink_to(labelled / 'train')
    with pytest.raises(InputError, match='Too many levels of symbolic links'):
        load_folder(str(labelled), 'train')


def test_all_splits_at_once(labelled):
    assert len(load_folder(str(labelled), 'all')) == 17


def test_the_fingerprint_tells_what_changed(labelled):
    def fingerprint():
        return load_folder(str(labelled), 'train').fingerprint

    seen = {fingerprint()}
    write(labelled / 'val' / 'bee' / 'new.png')
    assert fingerprint() in seen
    path = labelled / 'train' / 'ape' / '3.png'
    for change in (
        lambda: write(path, side=9),
        lambda: path.rename(path.with_name('33.png')),
        lambda: write(labelled / 'train' / 'bee' / 'new.png'),
        lambda: (labelled / 'train' / 'bee').rename(labelled / 'train' / 'cat'),
    ):
        change()
        assert fingerprint() not in seen
        seen.add(fingerprint())


def test_of_a_folder_of_classes_a_share_of_each_is_held_out(labelled, capsys):
    folder = str(labelled / 'train')
    train, test = (load_folder(folder, split) for split in ('train', 'test'))
    assert train.class_names == test.class_names == ('ape', 'bee')
    assert train.labels.tolist().count(0) == 8
    assert train.labels.tolist().count(1) == 4
    assert names(test) == ['ape/8.png', 'bee/more/4.bmp', 'ape/9.png']
    assert not set(names(train)) & set(names(test))
    assert names(load_folder(folder, 'train[:50%]')) == names(train)[:6]
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith(
        '3 of its 15 images, of all classes alike, are held out as the split test'
    )
    with pytest.raises(InputError, match='splits here: train, test'):
        load_folder(folder, 'train[:0]')


def test_a_source_survives_pickling_and_names_what_it_cannot_read(labelled):
    source = pickle.loads(pickle.dumps(load_folder(str(labelled), 'val')))
    np.testing.assert_array_equal(read_one(source, 1)[0], np.full((6, 6, 3), 201))
    (labelled / 'val' / 'bee' / '0.png').unlink()
    with pytest.raises(UnreadableImage, match=r'val/bee/0\.png: No such file'):
        read_one(source, 0)
    (labelled / 'val' / 'cat' / '0.PNG').write_bytes(b'')
    with pytest.raises(UnreadableImage, match=r'val/cat/0\.PNG: is empty'):
        read_one(source, 1)


def test_remote_folders_are_read(bucket):
    for name, grey in (('a', 1), ('b', 2)):
        data = cv2.imencode('.png', np.full((4, 4, 3), grey, np.uint8))[1].tobytes()
        bucket.pipe(f'/bucket/set/train/{name}/0.png', data)
    source = load_folder('s3://bucket/set', 'train')
    assert source.directory == 's3://bucket/set'
    assert names(source) == ['train/a/0.png', 'train/b/0.png']
    assert [image[0, 0, 0] for image in source.read(np.arange(2)).images] == [1, 2]


@pytest.mark.parametrize(
    ('path', 'split', 'message'),
    [
        ('', 'train', 'needs data.dir=PATH'),
        ('nowhere', 'train', 'nowhere is not a directory'),
        ('oss9://nowhere', 'train', 'oss9://nowhere cannot be read: Protocol not known: oss9'),
        ('train/ape/0.png', 'train', 'is not a directory'),
        (
            '.',
            'trian',
            r"no image of the split 'trian'; it holds mixed, train, val: lay",
        ),
        ('train', 'val', r"no image of the split 'val'; it holds ape, bee: lay it out as"),
        ('.', 'train[:0]', 'holds no image'),
        ('.', 'train[', "split 'train"),
        ('empty', 'train', 'it holds no folder'),
        ('mixed', 'train', r'mixed holds images \(logo.png\) beside folders of images \(train/x/0'),
        ('mixed', 'a', r'mixed holds images'),
        ('mixed/both', 'a', r'both/a holds images \(0.png\) beside folders of images \(b/0.png'),
    ],
)
def test_other_layouts_are_refused_in_one_line(labelled, path, split, message):
    (labelled / 'empty').mkdir()
    write(labelled / 'mixed' / 'logo.png')
    write(labelled / 'mixed' / 'train' / 'x' / '0.png')
    write(labelled / 'mixed' / 'both' / 'a' / '0.png')
    write(labelled / 'mixed' / 'both' / 'a' / 'b' / '0.png')
    with pytest.raises(InputError, match=message) as error:
        load_folder(path if ':' in path else path and str(labelled / path), split)
    assert '\n' not in str(error.value)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason='the photographs are not on this machine')
def test_photographs():
    source = load_folder(str(PHOTOS), 'val')
    assert len(source) == len(source.class_names) == 100
    image, _ = read_one(source, 5)
    assert image.ndim == 3
    assert image.dtype == np.uint8
