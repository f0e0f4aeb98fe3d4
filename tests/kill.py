"""Kills a small training at random moments, and compares what is left with one that nobody killed.

    python tests/kill.py --times=50 [--seed=0] [--cache=DIR] [--keep=DIR]

The shipped quickstart, made small, with its monitor and its probe. The same command is started
again after every kill, until it ends by itself; then its parameters, statistics, optimiser state,
metrics.jsonl and results.json are compared with those of the uninterrupted run, bit for bit. Some
of the runs read their data with a worker process, and some start with an empty compilation cache.
Prints a line a kill, and a summary as JSON; the exit status is 1 where anything differs.
"""

import argparse
import collections
import contextlib
import itertools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from tiny import REPOSITORY, TINY, xla_flags

from bagssl_jax import command_line
from bagssl_jax.checkpoints import restore_items
from bagssl_jax.data.datasets import open_dataset
from bagssl_jax.training.setup import set_up
from bagssl_jax.training.state import to_items

CONFIG = (
    *TINY,
    '--config.augment.jitter=0',
    '--config.train.epochs=4',
    '--config.train.log_every=3',
    '--config.train.checkpoint_every=2',
    '--config.train.monitor_every=0.5',
)
COMPARED = ('data.json', 'metrics.jsonl', 'results.json')
# Until a run says what it will do, until its first step, between steps, while a checkpoint is half
# written, while it is probed.
PHASES = ('start', 'compile', 'step', 'save', 'probe')
PATIENCE = 600  # seconds, that a run may take at most
ORPHANS = 30  # seconds, after which nothing of a killed run may be left
PAUSE = 0.003  # seconds between two looks at a run
SAVES = 12  # of the training


class Started:
    """A run of the training in a process group of its own."""

    def __init__(self, workdir, cache, overrides=()):
        self.workdir = workdir
        self._log = tempfile.TemporaryFile('w+')  # noqa: SIM115
        environment = {
            **os.environ,
            'JAX_PLATFORMS': 'cpu',
            'XLA_FLAGS': xla_flags(2),
            'JAX_COMPILATION_CACHE_DIR': str(cache),
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
            'PYTHONPATH': str(REPOSITORY),
        }
        self._process = subprocess.Popen(
            [sys.executable, '-m', 'bagssl_jax.main', *CONFIG, f'--workdir={workdir}', *overrides],
            cwd=workdir.parent,
            env=environment,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        self.began = time.monotonic()

    @property
    def seconds(self):
        return time.monotonic() - self.began

    def status(self):
        """None while it runs."""
        if self._process.poll() is None and self.seconds > PATIENCE:
            self.kill()
        return self._process.poll()

    def log(self):
        return os.pread(self._log.fileno(), 1 << 20, 0).decode()

    def phase(self):
        """Where it is, by its files and by what it has printed."""
        log = self.log()
        if 'images a step on' not in log:
            return 'start'
        if 'trained to step' in log:
            return 'probe'
        with contextlib.suppress(FileNotFoundError):
            if not all(name.isdigit() for name in os.listdir(self.workdir / 'checkpoints')):
                return 'save'
        return 'step' if len(set(re.findall(r'train: +(\d+)%', log))) > 1 else 'compile'

    def kill(self):
        """Kills the main process, and that one alone."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def leaves_nothing(self):
        """Whether all that a killed run had started ends by itself."""
        for _ in range(10 * ORPHANS):
            try:
                os.killpg(self._process.pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.1)
        os.killpg(self._process.pid, signal.SIGKILL)
        return False


def watch(started):
    """Waits for the end of a run: how many seconds it was in each phase."""
    took, last = dict.fromkeys(PHASES, 0.0), 0.0
    while started.status() is None:
        now = started.seconds
        took[started.phase()] += now - last
        last = now
        time.sleep(PAUSE)
    return took


def kill_in(started, phase, delay):
    """Kills a run so many seconds after a phase has begun: in which phase it then was, and when.

    None where it ended before, as one does where that phase was over when it started.
    """
    while started.phase() != phase:
        if started.status() is not None:
            return None
        time.sleep(PAUSE)
    time.sleep(delay)
    found, seconds = started.phase(), started.seconds
    if started.status() is not None:
        return None
    started.kill()
    return found, seconds


def trained(workdir):
    """Step and state of a run's newest checkpoint, on the host."""
    argv = ['main', *CONFIG, f'--workdir={workdir}']
    config, run = command_line.parse(argv, config_file=True)
    targets = to_items(set_up(config, open_dataset(config.data)).state)
    step, items = restore_items(run, targets)
    return step, jax.device_get(items)


def differences(workdir, reference):
    """What of a run is not as in the uninterrupted one."""
    found = []
    for name in COMPARED:
        if (workdir / name).read_bytes() != (reference / name).read_bytes():
            found.append(name)
    kept = [sorted(os.listdir(run / 'checkpoints')) for run in (workdir, reference)]
    if kept[0] != kept[1]:
        found.append(f'checkpoints {kept[0]} for {kept[1]}')
    (step, items), (expected_step, expected) = trained(workdir), trained(reference)
    if step != expected_step:
        found.append(f'step {step} for {expected_step}')
    leaves, expected_leaves = (jax.tree_util.tree_leaves_with_path(x) for x in (items, expected))
    for (path, leaf), (_, other) in zip(leaves, expected_leaves, strict=True):
        leaf, other = np.asarray(leaf), np.asarray(other)
        if leaf.dtype != other.dtype or leaf.tobytes() != other.tobytes():
            found.append(jax.tree_util.keystr(path))
    return found


def kill_often(times, rng, root, cache):
    """Runs and kills until there were so many kills: the summary."""
    reference = root / 'reference'
    started = Started(reference, cache)
    took = watch(started)
    if started.status() != 0:
        sys.exit(f'the uninterrupted run failed:\n{started.log()}')
    shown = ', '.join(f'{phase} {took[phase]:.1f}' for phase in PHASES)
    print(f'uninterrupted: {started.seconds:.1f} s, of which {shown}', flush=True)
    took['save'] /= SAVES
    killed, wrong, runs = collections.Counter(), [], 0
    while killed.total() < times:
        runs += 1
        workdir = root / f'run{runs}'
        overrides = ['--config.data.workers=1'] if rng.random() < 0.3 else []
        compiled = root / f'cache{runs}' if rng.random() < 0.2 else cache
        said = f'run {runs}{", with a worker" * bool(overrides)}{", cold" * (compiled != cache)}'
        for kills in itertools.count(1):
            started = Started(workdir, compiled, overrides)
            if killed.total() < times and (kills == 1 or rng.random() < 0.7):
                phase = rng.choice(PHASES)
                if found := kill_in(started, phase, rng.uniform(0, took[phase])):
                    killed[found[0]] += 1
                    print(f'{said}: killed after {found[1]:.2f} s in {found[0]}', flush=True)
                    if not started.leaves_nothing():
                        wrong.append(f'{said}: processes were left')
                    continue
            watch(started)
            break
        if started.status() != 0 or 'Traceback' in started.log():
            found = [f'exit status {started.status()}: {started.log()}']
        else:
            found = differences(workdir, reference)
        print(f'{said}: {"; ".join(found) or "as if it had not been"}', flush=True)
        wrong += [f'{said}: {difference}' for difference in found]
        shutil.rmtree(root / f'cache{runs}', ignore_errors=True)
    return {'kills': killed.total(), 'phases': killed, 'runs': runs, 'differences': wrong}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--times', type=int, default=50, help='kills')
    parser.add_argument('--seed', type=int, default=0, help='of the moments')
    parser.add_argument('--cache', help='of compiled programs, kept for the next time')
    parser.add_argument('--keep', help='an empty directory for the runs, which stay there')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(options.keep or scratch).resolve()
        root.mkdir(parents=True, exist_ok=True)
        cache = pathlib.Path(options.cache or root / 'cache').resolve()
        summary = kill_often(options.times, random.Random(options.seed), root, cache)
    print(json.dumps(summary))
    sys.exit(bool(summary['differences']))


if __name__ == '__main__':
    main()
