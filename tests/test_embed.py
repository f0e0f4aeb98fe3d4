"""The program bagssl_jax.embed."""

import re

import cv2
import numpy as np
import pytest
from conftest import save_run

import bagssl_jax
from bagssl_jax.embedding import encoder as encoders
from bagssl_jax.embedding import files, folder

NAMES = ['a/0.png', 'a/deep/1.png', 'a/deep/2.PNG', 'b/0.png', 'b/1.png', 'c.png', 'd.png']


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp('runs') / 'quickstart', '--config.encoder.width=4')


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    done, data = cv2.imencode('.png', image[..., ::-1])
    assert done
    path.write_bytes(data.tobytes())


@pytest.fixture
def photographs(tmp_path):
    """The folder, and the images in it by name."""
    rng = np.random.default_rng(0)
    images = {}
    for i, name in enumerate(NAMES):
        images[name] = rng.integers(0, 256, (16 + 3 * i, 30 - i, 3), dtype=np.uint8)
        write(tmp_path / 'images' / name, images[name])
    (tmp_path / 'images' / 'notes.txt').write_text('no image')
    return tmp_path / 'images', images


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(folder, 'PART', 3)


@pytest.fixture
def start(workdir, photographs, tmp_path, program):
    """Embeds the folder, with further arguments: exit status and standard error."""

    def start(*arguments, out='features.npz'):
        given = (f'--workdir={workdir}', f'--images={photographs[0]}', f'--out={tmp_path / out}')
        status, _, err = program('embed', *given, *arguments)
        return status, err

    return start


def test_a_row_an_image_in_the_order_of_their_names(start, workdir, photographs, tmp_path):
    status, err = start('--patches=4', '--space=z', '--chunk=16')
    assert status == 0
    assert re.search(r'embed: 100%.* 7/7 ', err)
    with np.load(tmp_path / 'features.npz') as found:
        assert sorted(found) == ['features', 'names', 'patches', 'space', 'step']
        assert found['names'].tolist() == NAMES
        assert (found['step'], found['patches'], found['space']) == (3, 4, 'z')
        features = found['features']
    expected = bagssl_jax.load(workdir).embed(list(photographs[1].values()), 4, space='z')
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)
    assert {path.name for path in tmp_path.iterdir()} == {'images', 'features.npz'}


def test_parquet(start, tmp_path):
    parquet = pytest.importorskip('pyarrow.parquet')
    assert start()[0] == start(out='features.parquet')[0] == 0
    table = parquet.read_table(tmp_path / 'features.parquet')
    assert {str(field.type) for field in table.schema} == {'string', 'list<element: float>'}
    assert table.schema.metadata == {b'step': b'3', b'patches': b'16', b'space': b'h'}
    with np.load(tmp_path / 'features.npz') as arrays:
        assert table['name'].to_pylist() == arrays['names'].tolist()
        np.testing.assert_array_equal(table['features'].to_pylist(), arrays['features'])


def test_goes_on_where_it_was_interrupted(start, tmp_path, monkeypatch):
    assert start(out='whole.npz')[0] == 0
    bags = encoders.FrozenEncoder.embed_each
    seen = []

    def recorded(self, bags_, *arguments, **keywords):
        for embedded in bags(self, bags_, *arguments, **keywords):
            if len(seen) == 5:
                raise KeyboardInterrupt
            seen.append(embedded)
            yield embedded

    monkeypatch.setattr(encoders.FrozenEncoder, 'embed_each', recorded)
    status, err = start()
    assert status == 130
    assert re.match('stopped by SIGINT: .* goes on from the parts', err.splitlines()[-1])
    parts = tmp_path / 'features.npz.parts'
    assert sorted(path.name for path in parts.iterdir()) == ['00000.npz', 'settings.json']

    seen.clear()
    status, err = start()
    assert status == 0
    assert len(seen) == len(NAMES) - folder.PART  # the first part was not done again
    assert re.search(r'embed: .* 3/7 ', err)
    assert not parts.exists()
    with np.load(tmp_path / 'whole.npz') as whole, np.load(tmp_path / 'features.npz') as found:
        for key in whole:
            np.testing.assert_array_equal(found[key], whole[key])


@pytest.fixture
def interrupted(start, tmp_path, monkeypatch):
    """All parts are there, but not yet features.npz."""

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setitem(files.WRITERS, '.npz', stop)
        assert start()[0] == 130
    return tmp_path / 'features.npz.parts'


def test_parts_of_other_features_are_not_mixed(start, photographs, interrupted, tmp_path):
    for arguments, key in (
        (['--patches=4'], 'patches (16 then, 4 now)'),
        (['--space=z'], 'space (h then, z now)'),
        ([f'--workdir={save_run(tmp_path / "other", steps=(4,))}'], 'step (3 then, 4 now)'),
        ([f'--workdir={save_run(tmp_path / "wider", steps=(3,))}'], 'encoder ('),
    ):
        status, err = start(*arguments)
        assert status == 2
        assert f'error: {interrupted} was begun with another {key}' in err.splitlines()[-1]
    write(photographs[0] / 'e.png', photographs[1]['d.png'])
    status, err = start()
    assert status == 2
    assert 'was begun with another list of images' in err
    (photographs[0] / 'e.png').unlink()
    assert start()[0] == 0


def test_a_damaged_part_is_named(start, interrupted):
    part = interrupted / '00001.npz'
    part.write_bytes(part.read_bytes()[:100])
    status, err = start()
    assert status == 2
    assert f'error: {part} is damaged: delete it, and start again' in err
    part.unlink()
    assert start()[0] == 0


def test_images_without_features_are_listed(start, photographs, tmp_path):
    directory, images = photographs
    (directory / 'a/0.png').write_bytes(b'')
    write(directory / 'b/0.png', images['b/0.png'][:10])
    (directory / 'broken.png').symlink_to('nowhere')
    status, err = start()
    assert status == 3
    assert err.splitlines()[-4:] == [
        f'{tmp_path / "features.npz"} lacks 3 of 8 images:',
        'a/0.png: is empty',
        'b/0.png: a patch of 16x16 pixels (patches.size=16) does not fit into an image of 10x27: '
        'give a smaller one',
        'broken.png: No such file or directory',
    ]
    with np.load(tmp_path / 'features.npz') as found:
        assert found['names'].tolist() == [n for n in NAMES if n not in ('a/0.png', 'b/0.png')]
        assert found['features'].shape == (5, 32)


def test_no_image_at_all_can_be_read(start, photographs, tmp_path):
    for name in NAMES:
        (photographs[0] / name).write_bytes(b'')
    assert start()[0] == 3
    with np.load(tmp_path / 'features.npz') as found:
        assert (found['names'].shape, found['features'].shape) == ((0,), (0, 32))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--out='], '--out is missing'),
        (['--workdir='], '--workdir is missing'),
        (['--out=features.csv'], '--out=features.csv must end in one of .npz, .parquet'),
        (['--out=/proc/no/features.npz'], '--out=/proc/no/features.npz cannot be written: '),
        (['--images=/no/such'], '/no/such is not a directory'),
        (['--patches=0'], '--patches=0 must be from 1 to'),
        (['--patches=many'], '--patches=many must be a whole number'),
        (['--chunk=0'], '--chunk=0 must be from 1 to'),
        (['--space=x'], "no space 'x' in this run: choose from h, hidden1, z"),
    ],
)
def test_mistakes_are_one_line(start, tmp_path, arguments, message):
    before = set(tmp_path.iterdir())
    status, err = start(*arguments)
    assert status == 2
    assert err.startswith(f'error: {message}')
    assert err.count('\n') == 1
    assert set(tmp_path.iterdir()) == before


def test_features_are_not_overwritten(start, tmp_path):
    (tmp_path / 'features.npz').write_text('mine')
    assert start() == (
        2,
        f'error: {tmp_path / "features.npz"} exists: delete it, or give another --out\n',
    )
    assert (tmp_path / 'features.npz').read_text() == 'mine'


def test_parquet_needs_pyarrow(start, monkeypatch):
    monkeypatch.setattr(files.importlib.util, 'find_spec', {'pyarrow': None}.get)
    status, err = start(out='features.parquet')
    assert (status, err) == (2, "error: a .parquet file needs pyarrow: pip install '.[parquet]'\n")


def test_a_folder_without_images(start, tmp_path):
    (tmp_path / 'empty').mkdir()
    status, err = start(f'--images={tmp_path / "empty"}')
    assert status == 2
    assert 'empty holds no image: its files must be .jpg' in err
