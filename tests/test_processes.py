"""Several processes: one answer, decisions made together, and a common end."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest
from conftest import REPOSITORY, SHRUNK, wait_for_checkpoint
from tiny import xla_flags

from bagssl_jax.checkpoints import restore_items
from bagssl_jax.data import photos
from bagssl_jax.data.geometry import PatchGeometry
from bagssl_jax.errors import InputError
from bagssl_jax.models import init_variables, make_networks
from bagssl_jax.parallel import make_mesh, replicated
from bagssl_jax.processes import Place, find_place
from bagssl_jax.runs import Run

SCRIPT = str(REPOSITORY / 'launch' / 'local_processes.sh')
SLURM = {
    'SLURM_JOB_ID': '71',
    'SLURM_STEP_NODELIST': 'node[1-2]',
    'SLURM_NTASKS': '2',
    'SLURM_PROCID': '1',
    'SLURM_LOCALID': '0',
}
# A rate at which rounding stays rounding over hundreds of steps; their losses tell batches apart.
LONG = (*SHRUNK, '--config.optimizer.learning_rate=0.00001', '--config.probe.after_training=False')


@pytest.mark.parametrize(
    ('flags', 'environ', 'place'),
    [
        ({}, {}, None),
        ({'coordinator': 'h:1', 'processes': '1', 'process': '0'}, {}, None),
        ({'coordinator': 'h:1', 'processes': '4', 'process': '3'}, {}, Place('h:1', 4, 3)),
        (
            {'process': '0'},
            {'BAGSSL_COORDINATOR': 'h:1', 'BAGSSL_PROCESSES': '2', 'BAGSSL_PROCESS': '1'},
            Place('h:1', 2, 0),
        ),
        ({}, SLURM, Place()),
        ({}, {**SLURM, 'SLURM_NTASKS': '1'}, None),
        ({}, {'SLURM_JOB_ID': '71', 'SLURM_NTASKS': '2'}, None),  # sbatch, outside of srun
        ({}, {'TPU_WORKER_HOSTNAMES': 'a,b'}, Place()),
        ({}, {'TPU_WORKER_HOSTNAMES': 'a'}, None),
        ({'processes': 'auto'}, {}, Place()),
    ],
)
def test_where_a_process_stands(flags, environ, place):
    assert find_place(flags, environ) == place


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        ({'processes': '2'}, '--coordinator and --process missing'),
        ({'coordinator': 'h:1', 'processes': '2', 'process': '2'}, '--process=2 must be below'),
        ({'coordinator': 'h:1', 'processes': 'two', 'process': '0'}, '--processes=two must be'),
        ({'coordinator': 'h', 'processes': '2', 'process': '0'}, '--coordinator=h must be HOST:P'),
    ],
)
def test_a_place_that_cannot_be(flags, message):
    with pytest.raises(InputError, match=message):
        find_place(flags, {})


def environment(devices):
    return {**os.environ, 'XLA_FLAGS': xla_flags(devices)}


@contextlib.contextmanager
def two_processes(workdir, *arguments, folder):
    """Two of one device each; standard error of the first is a pipe."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        coordinator = f'127.0.0.1:{free.getsockname()[1]}'
    command = [sys.executable, '-m', 'bagssl_jax.main', *arguments, f'--workdir={workdir}']
    command += [f'--coordinator={coordinator}', '--processes=2']
    started = []
    try:
        for process in range(2):
            started.append(
                subprocess.Popen(
                    [*command, f'--process={process}'],
                    cwd=folder,
                    env=environment(1) | {'PYTHONPATH': str(REPOSITORY)},
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def rows(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def parameters(workdir):
    """The step, and the encoder and projector of the newest checkpoint, on the host."""
    config = Run.at(workdir).read_config()
    side = PatchGeometry.of(config['patches']).input_side
    target = jax.device_put(
        init_variables(make_networks(config), 0, side=side), replicated(make_mesh())
    )
    step, items = restore_items(Run.at(workdir), target)
    return step, jax.device_get(items)


def assert_same_to_rounding(workdir, expected):
    (step, tree), (expected_step, expected_tree) = map(parameters, (workdir, expected))
    assert step == expected_step
    for leaf, other in zip(*map(jax.tree.leaves, (tree, expected_tree)), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=0, atol=1e-4 * max(abs(other).max(), 1))
    assert len(rows(workdir)) == len(rows(expected))
    for row, other in zip(rows(workdir), rows(expected), strict=True):
        assert row == pytest.approx(other, rel=1e-2)  # after 240 steps a rank differed by .0021


@pytest.mark.slow
def test_two_processes_give_the_answer_of_one(program, tmp_path):
    one, two = tmp_path / 'one', tmp_path / 'two'
    looking = *SHRUNK, '--config.train.monitor_every=1', '--config.probe.views=bag'
    assert program('main', *looking, f'--workdir={one}')[0] == 0
    command = [SCRIPT, '2', '--', sys.executable, '-m', 'bagssl_jax.main', *looking]
    ended = subprocess.run(
        [*command, f'--workdir={two}'],
        cwd=tmp_path,
        env=environment(1) | {'PYTHONPATH': str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    assert_same_to_rounding(two, one)
    results, expected = (json.loads((place / 'results.json').read_text()) for place in (two, one))
    for row, other in zip(results['rows'], expected['rows'], strict=True):
        assert row.keys() == other.keys()
        assert row['top1'] == pytest.approx(other['top1'], abs=1 / 40)  # an image of the test split
    # The first alone prints and writes.
    assert len(re.findall('top-1 on 40 test images', ended.stdout)) == 1
    assert len(re.findall('trained to step 12', ended.stderr)) == 1
    assert sorted(path.name for path in two.iterdir() if 'tfevents' not in path.name) == sorted(
        [path.name for path in one.iterdir() if 'tfevents' not in path.name] + ['errors']
    )
    assert list((two / 'errors').iterdir()) == []


@pytest.mark.slow
def test_a_signal_to_one_stops_both_and_one_process_goes_on(program, tmp_path):
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    steps = '--config.train.steps=240', '--config.train.checkpoint_every=24'
    assert program('main', *LONG, *steps, f'--workdir={whole}')[0] == 0
    with two_processes(stopped, *LONG, *steps, folder=tmp_path) as started:
        wait_for_checkpoint(started[0], stopped)
        started[1].send_signal(signal.SIGTERM)
        _, err = started[0].communicate(timeout=180)
        assert started[1].wait(timeout=180) == started[0].returncode == 143
    step = int(re.fullmatch(r'stopped by SIGTERM at step (\d+), .*', err.splitlines()[-1])[1])
    assert parameters(stopped)[0] == step < 240
    assert program('main', *LONG, *steps, f'--workdir={stopped}')[0] == 0
    assert_same_to_rounding(stopped, whole)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_other_in_one_line(tmp_path):
    steps = '--config.train.steps=1000000'
    with two_processes(tmp_path / 'run', *LONG, steps, folder=tmp_path) as started:
        wait_for_checkpoint(started[0], tmp_path / 'run')
        started[1].kill()
        _, err = started[0].communicate(timeout=180)
        assert started[0].returncode == 1
    line = err.splitlines()[-1]
    assert re.fullmatch(rf'error: process 1 \(.*, pid {started[1].pid}\) of 2 died .*', line)
    assert 'Traceback' not in err


@pytest.mark.slow
def test_an_unreadable_image_that_one_meets_stops_both(tmp_path):
    for i, (image, label) in enumerate(zip(*photos.tiles('train'), strict=True)):
        if i == 32:
            break
        place = tmp_path / 'data' / 'train' / str(label % 2)
        place.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place / f'{i:02}.jpg'), image[..., ::-1])
    damaged = next(tmp_path.glob('data/train/*/10.jpg'))
    damaged.write_bytes(damaged.read_bytes()[:-100])
    arguments = [*LONG, '--config.data.name=folder', f'--config.data.dir={tmp_path / "data"}']
    arguments += ['--config.data.train_split=train', '--config.train.steps=1000']
    with two_processes(tmp_path / 'run', *arguments, folder=tmp_path) as started:
        _, err = started[0].communicate(timeout=180)
        assert started[1].wait(timeout=180) == started[0].returncode == 2
    assert re.fullmatch(r'error: train/./10\.jpg: .*on_error=skip.*', err.splitlines()[-1])
    assert 'Traceback' not in err


COUNTING = r"""
import os, sys, time
process = int(os.environ['BAGSSL_PROCESS'])
os.write(1, f'started {process}\n'.encode())
time.sleep(0 if process == 1 else float(sys.argv[1]))
sys.exit(7 if process == 1 else 0)
"""


def test_the_script_starts_as_many_and_ends_as_the_first_that_fails():
    ended = subprocess.run(
        [SCRIPT, '3', '--', sys.executable, '-c', COUNTING, '0.5'], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (7, '')
    assert sorted(ended.stdout.splitlines()) == ['started 0', 'started 1', 'started 2']


def test_the_script_passes_signals_on():
    program = r'import os, time; os.write(1, b"started\n"); time.sleep(60)'
    process = subprocess.Popen(
        [SCRIPT, '2', '--', sys.executable, '-c', program], stdout=subprocess.PIPE, text=True
    )
    assert [process.stdout.readline() for _ in range(2)] == ['started\n'] * 2
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=180)
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize('arguments', [(), ('0', '--', 'true'), ('2', 'true'), ('2', '--')])
def test_the_script_says_how_it_is_used(arguments):
    ended = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True)
    assert ended.returncode == 2
    assert re.fullmatch('error: .*; usage: .*\n', ended.stderr)


def test_a_dry_run_starts_nothing():
    command = [SCRIPT, '--dry-run', '2', '--', 'python', '-m', 'bagssl_jax.main', '--a=b c']
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.stdout.splitlines() == [
        f'BAGSSL_COORDINATOR=127.0.0.1:PORT BAGSSL_PROCESSES=2 BAGSSL_PROCESS={process} '
        r'python -m bagssl_jax.main --a=b\ c &'
        for process in range(2)
    ]
