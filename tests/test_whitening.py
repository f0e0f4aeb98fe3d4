"""The whitening layer of `shallow`: what it makes of pixels, and that a run keeps it."""

import shutil

import jax
import numpy as np
import pytest
from tiny import REPOSITORY

from bagssl_jax import command_line
from bagssl_jax.data.datasets import open_dataset
from bagssl_jax.embedding.encoder import load_encoder
from bagssl_jax.errors import InputError
from bagssl_jax.models import make_encoder, make_networks
from bagssl_jax.models.shallow import EPSILON, whitening_kernel
from bagssl_jax.parallel import batch_sharded, make_mesh
from bagssl_jax.runs import Run
from bagssl_jax.training import loop, setup

HALF = (0.5, 0.5, 0.5)
SHALLOW = ('--config.encoder.name=shallow', '--config.encoder.width=4')


def train(config, workdir):
    loop.train(config, Run.at(workdir), open_dataset(config.data))


def kernel_of(encoder):
    return np.asarray(encoder.variables['encoder']['batch_stats']['whitening']['kernel'])


@pytest.fixture(scope='module')
def patches():
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 180, (60, 1, 1, 3)) + np.zeros((60, 9, 8, 1), int)
    return (smooth + rng.integers(0, 76, smooth.shape)).astype(np.uint8)


def test_what_is_whitened_is_uncorrelated_and_of_variance_one(patches):
    kernel = whitening_kernel(patches, HALF, HALF)
    x = (patches / 255 - 0.5) / 0.5
    dots = [
        np.einsum('nhwc,co->nhwo', x[:, i : i + 7, j : j + 6], kernel[i, j])
        for i in range(3)
        for j in range(3)
    ]
    covariance = np.cov(np.sum(dots, axis=0).reshape(-1, 27).T, bias=True)
    variances = np.diag(covariance)
    np.testing.assert_allclose(covariance, np.diag(variances), atol=1e-5)
    # Of variance v before it: v / (v + EPSILON)
    assert (np.diff(variances) <= 1e-6).all()
    assert variances[0] > 0.99
    before = variances * EPSILON / (1 - variances)
    np.testing.assert_allclose(
        before.sum(),
        sum(
            x[:, i : i + 7, j : j + 6].reshape(-1, 3).var(axis=0).sum()
            for i in range(3)
            for j in range(3)
        ),
        rtol=1e-4,
    )


def test_means_of_all_stages_end_with_that_of_the_last(patches):
    last, stages = (
        make_encoder('shallow', {'width': 4, 'pool': pool}, dtype='float32')
        for pool in ('last', 'stages')
    )
    x = patches[:4] / np.float32(255)

    @jax.jit
    def apply():
        variables = last.init(jax.random.key(0), x, train=False)
        return [encoder.apply(variables, x, train=False)[0] for encoder in (last, stages)]

    expected, h = apply()
    assert (expected.shape, h.shape) == ((4, 16), (4, 28))
    np.testing.assert_array_equal(h[:, -16:], expected)
    with pytest.raises(InputError, match=r"unknown encoder\.pool 'first'"):
        make_encoder('shallow', {'width': 4, 'pool': 'first'}, dtype='float32')


@pytest.mark.slow
def test_a_run_keeps_its_whitening_and_a_restored_one_makes_none(shrunk, tmp_path, monkeypatch):
    config = shrunk(*SHALLOW, '--config.train.steps=2')
    config.optimizer.warmup_epochs = 0.0
    config.train.checkpoint_every = 1
    config.train.log_every = 1
    train(config, tmp_path / 'run')
    encoder = load_encoder(Run.at(tmp_path / 'run'), chunk=8)
    fresh = setup.set_up(config, open_dataset(config.data)).state
    first = np.asarray(fresh.online['encoder']['batch_stats']['whitening']['kernel'])
    np.testing.assert_array_equal(kernel_of(encoder), first)  # no step has changed it
    np.testing.assert_array_equal(kernel_of(encoder.untrained(seed=5)), first)
    monkeypatch.setattr(setup, 'with_statistics', lambda networks, variables, patches: variables)
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '2')
    train(config, tmp_path / 'run')
    again = load_encoder(Run.at(tmp_path / 'run'), chunk=8)
    assert again.step == 2
    np.testing.assert_array_equal(kernel_of(again), first)


@pytest.mark.slow
def test_a_step_is_the_same_on_eight_devices(shrunk):
    config = shrunk(*SHALLOW)
    config.optimizer.warmup_epochs = 0.0
    params = []
    for devices in (1, 8):
        mesh = make_mesh(jax.devices()[:devices])
        made = setup.make_program(config, mesh, images=96, image_shape=None)
        shape = made.inputs['patches'].shape
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        state = jax.device_put(made.init(), jax.sharding.NamedSharding(mesh, jax.P()))
        before = jax.device_get(state.params)
        state, _ = made.step(state, {'patches': jax.device_put(pixels, batch_sharded(mesh))})
        params.append(jax.device_get(state.params))
    changes = [jax.tree.map(np.subtract, after, before) for after in params]
    for one, eight in zip(*map(jax.tree.leaves, changes), strict=True):
        np.testing.assert_allclose(eight, one, rtol=0, atol=2e-3 * abs(one).max())
        assert abs(one).max() > 0


@pytest.mark.parametrize(('argument', 'width'), [('', 512), (':small', 64)])
def test_the_minutes_configuration_has_a_whitening_layer(argument, width):
    path = f'{REPOSITORY}/configs/cifar10_minute.py'
    argv = ['main', '--workdir=unused', f'--config={path}{argument}']
    config = command_line.parse(argv, config_file=True)[0]
    assert make_networks(config).encoder.width == width
    assert config.data.crop_on == 'resident'
    argv[-1] = f'--config={path}:large'
    with pytest.raises(InputError, match="unknown argument 'large': choose small"):
        command_line.parse(argv, config_file=True)
