"""What a run does about damaged files, changed folders, dying workers and Ctrl-C."""

import contextlib
import os
import re
import shutil
import signal
import time

import cv2
import numpy as np
import psutil
import pytest
from conftest import SHRUNK, start, wait_for_checkpoint

from bagssl_jax.data import photos

pytestmark = pytest.mark.slow
FOLDER = (
    *SHRUNK,
    '--config.data.name=folder',
    '--config.data.train_split=train',
    '--config.data.test_split=test',
)


@pytest.fixture(scope='module')
def tiles():
    return photos.tiles('train')


@pytest.fixture
def folder(tmp_path, tiles):
    """Thirty-two tiles in two classes to train on, eight to test on."""
    for i, (image, label) in enumerate(zip(*(array[:40] for array in tiles), strict=True)):
        split = 'train' if i < 32 else 'test'
        place = tmp_path / 'data' / split / ('dark' if label < 4 else 'light')
        place.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place / f'{i:02}.jpg'), image[..., ::-1])
    return tmp_path / 'data'


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def widen(path):
    cv2.imwrite(str(path), np.zeros((10, 20_000, 3), np.uint8))


DAMAGES = {
    'truncated': truncate,
    'empty': lambda path: path.write_bytes(b''),
    'not an image': lambda path: path.write_text('<html>404 not found</html>'),
    '20000': widen,
}


def last_line(text):
    return text.strip().splitlines()[-1]


def no_process_is_left(group):
    """Whether all processes of a group are gone, within some seconds."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@contextlib.contextmanager
def training_with_workers(workdir, folder):
    """A long training with two workers, in a group of its own, that has saved its first step."""
    arguments = [*FOLDER, f'--config.data.dir={folder}', f'--workdir={workdir}']
    arguments += ['--config.data.workers=2', '--config.train.steps=100000']
    process = start('main', *arguments, cwd=workdir, start_new_session=True)
    try:
        wait_for_checkpoint(process, workdir)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def workers_of(process):
    children = psutil.Process(process.pid).children()
    return [child for child in children if 'spawn_main' in ' '.join(child.cmdline())]


# How each damage is told is in test_images.py; here, that a program tells it.
@pytest.mark.parametrize('reason', ['truncated', '20000'])
def test_a_damaged_file_stops_the_run_in_one_line_that_names_it(folder, tmp_path, program, reason):
    DAMAGES[reason](folder / 'train' / 'dark' / '10.jpg')
    arguments = [*FOLDER, f'--config.data.dir={folder}', f'--workdir={tmp_path / "run"}']
    status, _, err = program('main', *arguments)
    assert status == 2
    assert 'Traceback' not in err
    line = last_line(err)
    assert re.match(r'error: train/dark/10\.jpg: .*--config\.data\.on_error=skip', line)
    assert reason in line


def test_a_file_that_goes_while_it_is_trained_on_is_to_be_brought_back(folder, tmp_path):
    arguments = [*FOLDER, f'--config.data.dir={folder}', f'--workdir={tmp_path / "run"}']
    arguments += ['--config.train.steps=100000']
    process = start('main', *arguments, cwd=tmp_path)
    wait_for_checkpoint(process, tmp_path / 'run')
    (folder / 'train' / 'dark' / '10.jpg').unlink()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    expected = (
        r'error: train/dark/10\.jpg: No such file or directory: bring it back, .* from step (\d+);'
    )
    step = re.match(expected, last_line(err))[1]
    assert (tmp_path / 'run' / 'checkpoints' / step).is_dir()


def test_damaged_files_can_be_left_out_and_are_counted(folder, tmp_path, program):
    for name, damage in zip(('00', '01', '10', '11'), DAMAGES.values(), strict=True):
        damage(folder / 'train' / 'dark' / f'{name}.jpg')
    truncate(folder / 'test' / 'dark' / '32.jpg')
    arguments = [*FOLDER, f'--config.data.dir={folder}', f'--workdir={tmp_path / "run"}']
    status, out, err = program('main', *arguments, '--config.data.on_error=skip')
    assert status == 0, err
    assert sorted(re.findall(r'left out: train/dark/(\d+)\.jpg', err)) == ['00', '01', '10', '11']
    assert 'trained to step 4; 4 unreadable images were left out' in err
    assert '\n5 unreadable images were left out\n' in err
    assert out.startswith('folder, step 4: top-1 on 7 test images, 28 to train on')


def test_a_folder_that_changed_is_refused(folder, tmp_path, program):
    arguments = [*FOLDER, f'--config.data.dir={folder}', f'--workdir={tmp_path / "run"}']
    arguments += ['--config.probe.after_training=False', '--config.train.steps=4']
    assert program('main', *arguments)[0] == 0
    (folder / 'train' / 'light' / 'new.jpg').write_bytes(b'new')
    status, _, err = program('main', *arguments)
    assert status == 2
    assert '32 then, 33 now' in last_line(err)
    (folder / 'train' / 'light' / 'new.jpg').unlink()
    assert program('main', *arguments)[0] == 0


def test_a_probe_against_other_classes_is_refused(folder, tmp_path, program):
    workdir = tmp_path / 'run'
    arguments = [*FOLDER, f'--config.data.dir={folder}', f'--workdir={workdir}']
    assert program('main', *arguments)[0] == 0
    before = (workdir / 'results.json').read_text()
    for split in ('train', 'test'):
        (folder / split / 'light').rename(folder / split / 'bright')
    status, _, err = program('probe', f'--workdir={workdir}')
    assert status == 2
    assert re.search(r"not the 2 classes .*'bright' differs", last_line(err))
    assert (workdir / 'results.json').read_text() == before


def test_test_images_of_other_classes_and_of_one_are_told(folder, tmp_path, program):
    arguments = [*FOLDER, f'--config.data.dir={folder}', f'--workdir={tmp_path / "run"}']
    (folder / 'test' / 'light').rename(folder / 'test' / 'blue')
    status, _, err = program('main', *arguments, '--config.probe.probes=knn')
    assert status == 0, err
    told = r'\d of 8 test images are of 1 classes of which no training image is \(blue\): they'
    assert len(re.findall(told, err)) == 1
    for file in (folder / 'test' / 'blue').iterdir():
        file.unlink()
    status, _, err = program('probe', *arguments[-1:], '--config.probe.probes=knn')
    assert re.search(r'all \d test images are of one class \(dark\): their accuracy', err)
    assert 'are training images of' not in err
    same = '--config.data.test_split=train[:4]+test'
    _, _, err = program('probe', *arguments[-1:], '--config.probe.probes=knn', same)
    assert re.search(
        r'\b4 of \d test images \(folder train\[:4\]\+test\) are training images of', err
    )


def test_images_of_one_class_train_and_are_not_probed(folder, tmp_path, program):
    for split in ('train', 'test'):
        shutil.rmtree(folder / split / 'light')
    arguments = [*FOLDER, f'--config.data.dir={folder}', f'--workdir={tmp_path / "run"}']
    status, _, err = program('main', *arguments, '--config.data.batch_size=8')
    assert status == 0, err
    assert 'folder train has one class: it is not probed after training' in err


def test_images_without_labels_train_and_are_not_probed(folder, tmp_path, program):
    arguments = [*FOLDER, f'--config.data.dir={folder / "train" / "dark"}']
    arguments += [f'--workdir={tmp_path / "run"}', '--config.data.batch_size=8']
    status, _, err = program('main', *arguments)
    assert status == 0, err
    assert 'folder train has no labels: it is not probed after training' in err
    status, _, err = program('probe', arguments[-2])
    assert status == 2
    assert 'has no labels' in last_line(err)


def test_ctrl_c_with_workers_saves_and_leaves_no_process(folder, tmp_path):
    with training_with_workers(tmp_path, folder) as process:
        assert len(workers_of(process)) == 2
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all of them
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert 'Traceback' not in err
        step = re.fullmatch(r'stopped by SIGINT at step (\d+), which is saved.*', last_line(err))[1]
        assert (tmp_path / 'checkpoints' / step).is_dir()
        assert no_process_is_left(process.pid)


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_dies_ends_the_run_with_a_checkpoint(folder, tmp_path, number):
    with training_with_workers(tmp_path, folder) as process:
        workers_of(process)[1].send_signal(number)
        _, err = process.communicate(timeout=90)
        assert process.returncode == 1
        assert 'Traceback' not in err
        # Not always the last line: what a killed worker had in shared memory is cleared behind it.
        step = re.search(r'^error: a worker process .* died .* at step (\d+), .*$', err, re.M)[1]
        assert (tmp_path / 'checkpoints' / step).is_dir()
        assert no_process_is_left(process.pid)


def test_workers_end_with_a_parent_that_is_killed(folder, tmp_path):
    with training_with_workers(tmp_path, folder) as process:
        process.kill()
        process.wait()
        assert no_process_is_left(process.pid)
