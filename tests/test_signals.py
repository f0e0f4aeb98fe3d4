"""What Ctrl-C and a preemption do to programs; in training, tests/test_loop.py has more."""

import re
import signal
import time

import cv2
import psutil
import pytest
from conftest import SHRUNK, save_run, start

from bagssl_jax.data import photos
from bagssl_jax.signals import ECHO, Deferral, unwinding

BOTH = pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])


def stopped(process, text, number):
    """All of standard error, of a program that gets a signal where it has written some text."""
    err = ''
    while text not in err:
        read = process.stderr.read(1)
        assert read, f'it ended: {err}'
        err += read
    process.send_signal(number)
    began = time.monotonic()
    err += process.communicate(timeout=60)[1]
    assert time.monotonic() - began < 30
    assert process.returncode == 128 + number
    assert 'Traceback' not in err
    return err


def wait_for_imports(process):
    """Returns when a program has worked for a quarter of a second, of the seconds of its start."""
    while sum(psutil.Process(process.pid).cpu_times()[:2]) < 0.25:
        time.sleep(0.01)


def last_line(text):
    return re.split(r'[\r\n]+', text.strip())[-1]


@BOTH
def test_a_program_that_imports_ends_in_one_line(number, tmp_path):
    process = start('main', *SHRUNK, f'--workdir={tmp_path / "run"}')
    wait_for_imports(process)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (128 + number, '')
    name = signal.Signals(number).name
    assert err == f'stopped by {name}: the same command goes on from what is saved\n'
    assert not (tmp_path / 'run').exists()


def test_a_program_ends_where_nobody_reads_what_it_says(tmp_path):
    process = start('main', *SHRUNK, f'--workdir={tmp_path / "run"}')
    wait_for_imports(process)
    process.stderr.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    process.stdout.close()


@pytest.mark.slow
@BOTH
def test_a_probe_with_workers_ends_in_one_line(number, tmp_path):
    workdir = save_run(tmp_path / 'run', *SHRUNK[1:])
    many = '--config.data.train_split=train'  # fewer images have no workers
    process = start('probe', f'--workdir={workdir}', '--config.data.workers=2', many)
    err = stopped(process, 'probe:', number)
    assert last_line(err).endswith(
        'results.json has what was finished; the same command starts anew'
    )


@pytest.mark.slow
def test_an_embedding_keeps_its_parts(tmp_path, program):
    workdir = save_run(tmp_path / 'run', *SHRUNK[1:])
    (tmp_path / 'images').mkdir()
    for i, image in enumerate(photos.tiles('train')[0][:2048]):
        cv2.imwrite(str(tmp_path / 'images' / f'{i:04}.png'), image)
    arguments = [f'--workdir={workdir}', f'--images={tmp_path / "images"}']
    arguments += [f'--out={tmp_path / "features.npz"}', '--patches=4', '--chunk=16']
    process = start('embed', *arguments)
    part = tmp_path / 'features.npz.parts' / '00000.npz'
    while not part.exists():
        assert process.poll() is None
        time.sleep(0.01)
    err = stopped(process, 'embed:', signal.SIGTERM)
    assert last_line(err).endswith('goes on from the parts that were finished')
    assert part.exists()
    assert not (tmp_path / 'features.npz').exists()


@BOTH
def test_what_is_put_off_acts_at_once_the_second_time(number):
    acted = []
    before = signal.signal(number, lambda *_: acted.append(number))
    try:
        with Deferral() as deferral:
            signal.raise_signal(number)
            assert (acted, deferral.seen) == ([number], [])  # not begun
            deferral.begin()
            deferral.begin()
            signal.raise_signal(number)
            assert (acted, deferral.seen) == ([number], [number])
            if number == signal.SIGTERM:
                signal.raise_signal(number)  # as timeout(1) does
                assert (acted, deferral.seen) == ([number], [number])
                time.sleep(ECHO)
            signal.raise_signal(number)
            assert acted == [number, number]
        signal.raise_signal(number)
        assert acted == [number] * 3
    finally:
        signal.signal(number, before)


def test_what_takes_long_and_can_be_done_again_is_broken_off():
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with Deferral() as deferral:
            deferral.begin()
            reached = []
            with deferral.breaking_off():
                reached.append('inside')
                signal.raise_signal(signal.SIGTERM)
                reached.append('never')
            assert (reached, deferral.seen) == (['inside'], [signal.SIGTERM])
            with deferral.breaking_off(), pytest.raises(OSError, match='full'):
                raise OSError('full')
    finally:
        signal.signal(signal.SIGTERM, before)


@BOTH
def test_where_something_must_be_cleared_up_a_signal_raises(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as stop, unwinding():
        signal.raise_signal(number)
    assert stop.value.args == (number,)
    assert signal.getsignal(number) is before


def test_a_reader_that_has_left_ends_a_program_silently():
    """As of `... --help | head -1`."""
    with start('study', '--help') as process:
        process.stdout.close()
        assert process.stderr.read() == ''
    assert process.returncode == 128 + signal.SIGPIPE
