"""Sends SIGINT and SIGTERM to every program in every phase, and prints what becomes of it.

    python tests/stop.py [--only=TEXT] [--cache=DIR]

A line for each phase and signal: when it came, exit status, seconds until the end, and the last
line that the program has written. The exit status is 1 where a program took more than 30 seconds,
ended with another status than 130 or 143, or has written more than its progress and one line.
"""

import argparse
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import cv2
from kill import CONFIG, REPOSITORY

from bagssl_jax.data import photos

LIMIT = 30  # seconds


class Phase(NamedTuple):
    """When a signal comes: so many seconds after a program has written some text."""

    name: str
    arguments: tuple[str, ...]
    text: str = ''
    delay: float = 0.0


def phases(root):
    """All of them; a finished run is in `root`/run, and 2,048 images in `root`/images."""
    workdir, fresh = f'--workdir={root / "run"}', f'--workdir={root / "fresh"}'
    long, workers = '--config.train.epochs=9999', '--config.data.workers=2'
    train = ('main', *CONFIG, fresh, long)
    probe = ('probe', workdir)
    analyze = ('analyze', workdir, '--what=cooccurrence')
    out = f'--out={root / "features.npz"}'
    embed = ('embed', workdir, f'--images={root / "images"}', out, '--patches=64', '--chunk=64')
    yield Phase('main, importing', train, delay=0.3)
    yield Phase('main, importing', train, delay=1)
    yield Phase('main, compiling', train, 'images a step on')
    yield Phase('main, training', train, 'loss')
    yield Phase('main, monitoring', (*train, '--config.train.monitor_every=0.2'), 'knn_top1')
    yield Phase('main, training with workers', (*train, workers), 'loss')
    yield Phase('main, probing', ('main', *CONFIG, workdir), 'probe:')
    yield Phase('probe, importing', probe, delay=1)
    yield Phase('probe, embedding', probe, 'probe:')
    many = '--config.data.train_split=train'  # fewer images have no workers
    yield Phase('probe, with workers', (*probe, workers, many), 'probe:', 3)
    sgd = (*probe, '--config.probe.probes=sgd', '--config.probe.sgd.epochs=20000')
    yield Phase('probe, fitting', sgd, 'probe:', 3)
    yield Phase('analyze, importing', analyze, delay=1)
    yield Phase('analyze, embedding', analyze, 'patches:')
    yield Phase('embed, importing', embed, delay=0.7)
    yield Phase('embed, embedding', embed, 'embed:')
    for what in ('train', 'embed', 'probe', 'data', 'compile'):
        measure = ('benchmark', what, *CONFIG)
        yield Phase(f'benchmark {what}, importing', measure, delay=1)
        yield Phase(f'benchmark {what}, set-up', measure, delay=3)
    export = ('export', workdir, f'--out={root / "exported.onnx"}')
    yield Phase('export, importing', export, delay=0.7)
    yield Phase('prepare, importing', ('prepare', 'cifar10', f'--data_dir={root}'), delay=0.7)


def start(arguments, cache, log):
    module, *rest = arguments
    environment = {
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
        'JAX_COMPILATION_CACHE_DIR': str(cache),
        'PYTHONPATH': str(REPOSITORY),
    }
    return subprocess.Popen(
        [sys.executable, '-m', f'bagssl_jax.{module}', *rest],
        env=environment,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def stopped(phase, number, cache):
    """A line that says what happened, and whether it is as it should be."""
    with tempfile.TemporaryFile() as log:
        process = start(phase.arguments, cache, log)
        began = time.monotonic()
        while phase.text not in written(log) and process.poll() is None:
            time.sleep(0.003)
        time.sleep(phase.delay)
        at = time.monotonic()
        process.send_signal(number)
        process.wait()
        took = time.monotonic() - at
        lines = [line for line in re.split(r'[\r\n]+', written(log)) if line]
    line = lines[-1] if lines else ''
    shown = f'{phase.name:<28} {number.name:<8}{at - began:6.1f} s {process.returncode:5}'
    name = re.escape(number.name)
    is_right = process.returncode == 128 + number and took < LIMIT
    is_right = is_right and re.match(f'stopped by {name}', line) and 'Traceback' not in str(lines)
    return f'{shown} {took:6.2f} s  {line[:100]}', bool(is_right)


def written(log):
    return os.pread(log.fileno(), 1 << 22, 0).decode()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--only', default='', help='what is in the names of the phases')
    parser.add_argument('--cache', help='of compiled programs, kept for the next time')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch)
        cache = pathlib.Path(options.cache or root / 'cache').resolve()
        (root / 'images').mkdir()
        for i, image in enumerate(photos.tiles('train')[0][:2048]):
            cv2.imwrite(str(root / 'images' / f'{i}.png'), image)
        with tempfile.TemporaryFile() as log:
            finished = start(('main', *CONFIG, f'--workdir={root / "run"}'), cache, log)
            if finished.wait():
                sys.exit(written(log))
        all_right = True
        for phase in phases(root):
            for number in (signal.SIGINT, signal.SIGTERM) if options.only in phase.name else ():
                line, is_right = stopped(phase, number, cache)
                print(line if is_right else f'{line}  <- wrong', flush=True)
                all_right &= is_right
    sys.exit(not all_right)


if __name__ == '__main__':
    main()
