"""BatchNorm over groups of the global batch, on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from bagssl_jax.models.norms import EPSILON, MOMENTUM, norm_layer
from bagssl_jax.parallel import DATA_AXIS, make_mesh


@pytest.fixture(scope='module')
def x():
    rng = np.random.default_rng(0)
    return (rng.normal(size=(16, 2, 3, 5)) + rng.normal(size=(16, 1, 1, 1))).astype(np.float32)


def trained(x, *, groups, devices):
    """What comes out, the new statistics, and the gradients of its sum of cubes."""
    layer = norm_layer(True, jnp.float32, groups)()
    variables = norm_layer(False, jnp.float32, groups)().init(jax.random.key(0), x)

    def of_device(variables, x):
        def loss(params):
            params = jax.lax.pcast(params, DATA_AXIS, to='varying')
            inputs = {'params': params, 'batch_stats': variables['batch_stats']}
            y, updates = layer.apply(inputs, x, mutable=['batch_stats'])
            return jax.lax.psum(jnp.sum(y**3 * x), DATA_AXIS), (y, updates['batch_stats'])

        (_, (y, stats)), grads = jax.value_and_grad(loss, has_aux=True)(variables['params'])
        return y, stats, grads

    whole, split = PartitionSpec(), PartitionSpec(DATA_AXIS)
    function = jax.shard_map(
        of_device,
        mesh=make_mesh(jax.devices()[:devices]),
        in_specs=(whole, split),
        out_specs=(split, whole, whole),
    )
    return jax.device_get(jax.jit(function)(variables, x))


@pytest.mark.parametrize(('groups', 'devices'), [(2, 1), (2, 2), (2, 8), (4, 2), (8, 8)])
def test_every_group_is_normalised_by_its_own_statistics(x, groups, devices):
    y, stats, _ = trained(x, groups=groups, devices=devices)
    parts = x.astype(np.float64).reshape(groups, -1, *x.shape[1:])
    mean, var = (f(parts, axis=(1, 2, 3), keepdims=True) for f in (np.mean, np.var))
    expected = (parts - mean) / np.sqrt(var + EPSILON)
    np.testing.assert_allclose(y, expected.reshape(x.shape), atol=2e-5)
    np.testing.assert_allclose(stats['mean'], (1 - MOMENTUM) * mean.mean((0, 1, 2, 3)), atol=1e-6)
    running_var = MOMENTUM + (1 - MOMENTUM) * var.mean((0, 1, 2, 3))
    np.testing.assert_allclose(stats['var'], running_var, rtol=1e-5)


def test_gradients_are_the_same_on_any_number_of_devices(x):
    expected = trained(x, groups=2, devices=1)[2]
    for devices in (2, 8):
        found = trained(x, groups=2, devices=devices)[2]
        for name, grad in expected.items():
            np.testing.assert_allclose(found[name], grad, rtol=1e-4)


def test_one_group_is_the_whole_batch(x):
    (y, stats, _), (other, other_stats, _) = (
        trained(np.concatenate([x, x]), groups=groups, devices=4) for groups in (1, 2)
    )
    # Both halves are equal, so that their statistics are those of the whole.
    np.testing.assert_allclose(y, other, atol=2e-5)
    for name, values in stats.items():
        np.testing.assert_allclose(values, other_stats[name], rtol=1e-5, atol=1e-6)


def test_the_running_statistics_are_used_afterwards(x):
    layer = norm_layer(False, jnp.float32, 2)()
    variables = layer.init(jax.random.key(0), x)
    np.testing.assert_allclose(layer.apply(variables, x), x / np.sqrt(1 + EPSILON), rtol=1e-6)
