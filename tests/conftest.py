"""Eight CPU devices, a persistent compilation cache, and strict JAX settings for every test."""

import contextlib
import os
import runpy
import subprocess
import sys
import time
from typing import ClassVar

from tiny import REPOSITORY, TINY, xla_flags

# Set before JAX is imported; programs that the tests start inherit them.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = xla_flags(8)
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(REPOSITORY / '.cache' / 'jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.03')

import fsspec
import jax
import numpy as np

jax.config.update('jax_numpy_rank_promotion', 'raise')

import pytest  # noqa: E402
from fsspec.implementations.memory import MemoryFileSystem  # noqa: E402

from bagssl_jax import command_line  # noqa: E402
from bagssl_jax.checkpoints import Checkpoints  # noqa: E402
from bagssl_jax.data.geometry import PatchGeometry  # noqa: E402
from bagssl_jax.models import init_variables, make_networks  # noqa: E402
from bagssl_jax.runs import Run  # noqa: E402

SHRUNK = (
    *TINY,
    '--config.augment.jitter=0',  # which compiles for longer than the networks
    '--config.predictor.widths=(12,8)',
    '--config.optimizer.warmup_epochs=0.5',
    '--config.train.epochs=2',
    '--config.train.log_every=2',
    '--config.train.checkpoint_every=4',
)


@pytest.fixture(scope='session')
def shrunk():
    """Makes a configuration: the shrunk quickstart with further overrides, as on a command line."""

    def make(*overrides):
        argv = ['main', '--workdir=unused', *SHRUNK, *overrides]
        return command_line.parse(argv, config_file=True)[0]

    return make


class Bucket(MemoryFileSystem):
    """A file system in memory under s3://."""

    protocol = 's3'
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = ['']

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix('s3:/'))


@pytest.fixture
def bucket():
    """What s3:// leads to."""
    fsspec.register_implementation('s3', Bucket, clobber=True)
    Bucket.store.clear()
    Bucket.pseudo_dirs[:] = ['']
    return Bucket()


def slow_but(quick, values):
    """Parameters of a test, of which the `quick` ones are not marked as slow."""
    return [
        value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values
    ]


def read_one(source, index):
    """One image of a source, uint8 [h w c], and its label."""
    [image], [label] = source.read(np.array([index]))
    return image, label


def blobs(seed, count, *, classes=6, width=8, spread=1.0):
    """Classes around fixed centres, in shuffled order, every one present."""
    centres = np.random.default_rng(7).normal(size=(classes, width))
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % classes)
    features = spread * centres[labels] + rng.normal(size=(count, width))
    return features.astype(np.float32), labels


def save_run(workdir, *overrides, steps=(3,)):
    """A run of the quickstart's networks, which have what seed STEP gives after STEP steps."""
    quickstart = f'--config={REPOSITORY}/configs/quickstart.py'
    config, run = command_line.parse(
        ['main', f'--workdir={workdir}', quickstart, *overrides], config_file=True
    )
    networks, side = make_networks(config), PatchGeometry.of(config.patches).input_side
    run.claim(config.to_dict(), None)
    with contextlib.closing(Checkpoints(run, keep=9)) as checkpoints:
        for step in steps:
            checkpoints.save(step, init_variables(networks, step, side=side), {})
    return str(workdir)


@pytest.fixture
def program(monkeypatch, capsys):
    """Runs a program in this process: exit status, standard output and standard error."""

    def run(module, *arguments):
        monkeypatch.setattr(sys, 'argv', [module, *map(str, arguments)])
        status = 0
        try:
            runpy.run_path(str(REPOSITORY / 'bagssl_jax' / f'{module}.py'), run_name='__main__')
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def refusal(program):
    """The one line that a program prints, and nothing else, on its way out with status 2."""

    def refused(module, *arguments):
        status, out, err = program(module, *arguments)
        assert (status, out) == (2, '')
        line, end = err.split('\n', 1)
        assert end == ''
        return line

    return refused


def start(module, *arguments, **options):
    """Starts a program as a person does, with two devices."""
    environment = {**os.environ, 'XLA_FLAGS': xla_flags(2)}
    return subprocess.Popen(
        [sys.executable, '-m', f'bagssl_jax.{module}', *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run(module, *arguments, **options):
    """Runs a program to its end: exit status, standard output and standard error."""
    process = start(module, *arguments, **options)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def wait_for_checkpoint(process, workdir):
    """Returns when the run has saved some step and goes on."""
    checkpoints = Run.at(workdir).checkpoints
    while process.poll() is None:
        if checkpoints.is_dir() and any(path.name.isdigit() for path in checkpoints.iterdir()):
            return
        time.sleep(0.005)
    pytest.fail(f'ended before it was interrupted: {process.stderr.read()}')
