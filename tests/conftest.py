"""Eight CPU devices, a persistent compilation cache, and strict JAX settings for every test."""

import os
import pathlib

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

# Set before JAX is imported; programs that the tests start inherit them.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(REPOSITORY / '.cache' / 'jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')

import jax  # noqa: E402
import numpy as np  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')

import pytest  # noqa: E402

from bagssl_jax import cli  # noqa: E402

# The shipped quickstart, small enough to train in a second or two.
SHRUNK = (
    f'--config={REPOSITORY}/configs/quickstart.py',
    '--config.data.train_split=train[:96]',
    '--config.data.test_split=test[:40]',
    '--config.data.batch_size=16',
    '--config.patches.count=2',
    '--config.patches.size=8',
    '--config.patches.resize=8',
    '--config.encoder.width=4',
    '--config.projector.widths=(16,8)',
    '--config.predictor.widths=(12,8)',
    '--config.optimizer.warmup_epochs=0.5',
    '--config.train.epochs=2',
    '--config.train.log_every=2',
    '--config.train.checkpoint_every=4',
    '--config.probe.patches=(1,4)',
    '--config.probe.batch_size=64',
)


@pytest.fixture(scope='session')
def shrunk():
    """Makes a configuration: the shrunk quickstart with further overrides, as on a command line."""

    def make(*overrides):
        argv = ['main', '--workdir=unused', *SHRUNK, *overrides]
        return cli.parse(argv, config_file=True)[0]

    return make


def read_one(source, index):
    """One image of a source, uint8 [h w c], and its label."""
    [image], [label] = source.read(np.array([index]))
    return image, label


def refusal(capsys, start):
    """The one line that a program prints, and nothing else, on its way out with status 2."""
    with pytest.raises(SystemExit) as stop:
        start()
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ''
    line, end = captured.err.split('\n', 1)
    assert end == ''
    return line
