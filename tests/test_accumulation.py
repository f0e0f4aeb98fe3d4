"""Gradient accumulation: a batch in parts through the networks, and at once through the loss."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import slow_but
from jax.sharding import PartitionSpec

from bagssl_jax.augment import augment
from bagssl_jax.benchmarks.collectives import collective_bytes
from bagssl_jax.models import Networks, make_projector
from bagssl_jax.models.resnet import HALF, resnet, tiny
from bagssl_jax.objectives import OBJECTIVES, make_objective
from bagssl_jax.parallel import batch_sharded, make_mesh, replicated, sharded_shapes
from bagssl_jax.training.accumulation import in_parts
from bagssl_jax.training.collapse import spread
from bagssl_jax.training.optimizers import cosine_momentum
from bagssl_jax.training.state import create_state
from bagssl_jax.training.steps import make_spread_step, make_train_step

# Little of it, as it compiles for longer than the networks.
CHANGED = functools.partial(augment, jitter=0, grey=0.3, solarize=0.3)
KEY = jax.random.key(3)
SGD = optax.sgd(0.1, momentum=0.9)
IMAGES, PATCHES, PARTS = 16, 3, 2
# With one network, with a target network beside it, and with draws of its own in every step: these
# are what a step tells apart, not the losses.
KINDS = ('tcr', 'byol', 'sigreg')


def plain(key, patches, places):
    """No augmentation: [n h w c] uint8 -> float in [0, 1]."""
    del key, places
    return patches.astype(jnp.float32) / 255


@pytest.fixture(scope='module')
def patches():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 180, (IMAGES, 1, 1, 1, 3))
    return (image + rng.integers(0, 76, (IMAGES, PATCHES, 8, 8, 3))).astype(np.uint8)


def networks_for(objective, encoder=None):
    return Networks(
        encoder or tiny(width=4, dtype=jnp.float32, mean=HALF, std=HALF),
        make_projector(widths=(16, 8), dtype='float32'),
        make_projector(widths=(12, 8), dtype='float32') if OBJECTIVES[objective].target else None,
    )


def options(devices, augment, accumulate):
    return {
        'cut': lambda inputs: inputs['patches'],
        'augment': augment,
        'key': KEY,
        'mesh': make_mesh(jax.devices()[:devices]),
        'accumulate': accumulate,
    }


def make_step(objective, options, encoder=None):
    return make_train_step(
        networks_for(objective, encoder),
        make_objective(objective, {}),
        SGD,
        cosine_momentum(0.9, 10),
        **options,
    )


@functools.cache
def fresh_state(objective):
    return jax.device_get(create_state(networks_for(objective), SGD, 0, side=8))


def one_step(objective, devices, patches, *, augment=CHANGED, accumulate=PARTS):
    """The state and the metrics after one step, on the host."""
    chosen = options(devices, augment, accumulate)
    mesh = chosen['mesh']
    state = jax.device_put(fresh_state(objective), replicated(mesh))
    inputs = {'patches': jax.device_put(patches, batch_sharded(mesh))}
    return jax.device_get(make_step(objective, chosen)(state, inputs))


def pass_through(networks, variables, x):
    """All images' outputs [b p d] and new statistics by name, of float patches [b p h w c].

    Image i is of part i mod PARTS; the parts pass one after the other.
    """
    names = [name for name in networks._fields if name in variables]  # in the data's order
    stats = {name: variables[name]['batch_stats'] for name in names}
    outputs = {name: [None] * IMAGES for name in names}
    for part in range(PARTS):
        y = x[part::PARTS].reshape(-1, *x.shape[2:])
        for name in names:
            (y, _), updates = getattr(networks, name).apply(
                {'params': variables[name]['params'], 'batch_stats': stats[name]},
                y,
                train=True,
                mutable=['batch_stats'],
            )
            stats[name] = updates['batch_stats']
            outputs[name][part::PARTS] = y.reshape(IMAGES // PARTS, PATCHES, -1)
    return {name: jnp.stack(of_images) for name, of_images in outputs.items()}, stats


def by_plain_differentiation(objective, state, patches):
    """Metrics, statistics (online, target), gradient and outputs of a batch, without this package's
    step: its public parts, one after the other, on one device."""
    networks = networks_for(objective)

    def measured(state, patches):
        flat = patches.reshape(-1, *patches.shape[2:])
        x = CHANGED(jax.random.fold_in(KEY, 0), flat, jnp.arange(len(flat)))
        x = x.reshape(patches.shape)
        target, target_stats = pass_through(networks, state.target, x)

        def loss_fn(params):
            variables = {name: {**state.online[name], 'params': params[name]} for name in params}
            outputs, stats = pass_through(networks, variables, x)
            vectors = [outputs['projector']]
            if target:
                vectors = [outputs['predictor'], target['projector']]
            key = jax.random.fold_in(jax.random.fold_in(KEY, 2**32 - 1), 0)  # of step 0
            loss, terms = make_objective(objective, {}).loss(*vectors, key=key)
            return loss, ({'loss': loss, **terms}, (stats, target_stats), outputs)

        (_, results), gradient = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return *results, gradient

    # BatchNorm averages over the devices' axis, which has one device here.
    measured = jax.shard_map(
        measured,
        mesh=make_mesh(jax.devices()[:1]),
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    return jax.device_get(jax.jit(measured)(state, patches))


def statistics(variables):
    return {name: of_network['batch_stats'] for name, of_network in variables.items()}


def parameters(variables):
    return {name: of_network['params'] for name, of_network in variables.items()}


def assert_close(tree, expected, tolerance):
    """Every leaf, to `tolerance` of its largest element, or of .1 where that is below."""
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for leaf, other in zip(*map(jax.tree.leaves, (tree, expected)), strict=True):
        scale = max(abs(other).max(), 0.1)
        np.testing.assert_allclose(leaf, other, rtol=0, atol=tolerance * scale)


@pytest.mark.slow
@pytest.mark.parametrize('objective', KINDS)
def test_a_step_in_parts_equals_plain_differentiation_of_all_parts(objective, patches):
    before = fresh_state(objective)
    expected, stats, _, gradient = by_plain_differentiation(objective, before, patches)
    updates, _ = SGD.update(gradient, before.opt_state, before.params)
    params = jax.device_get(optax.apply_updates(before.params, updates))
    for devices in (1, 8):
        state, metrics = one_step(objective, devices, patches)
        norm = metrics.pop('gradient_norm')
        chex.assert_trees_all_close(metrics, expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(norm, optax.tree.norm(gradient), rtol=1e-5)
        # From rest, momentum is the gradient. Rounding is 1.0e-5 on one kind of CPU.
        assert_close(state.opt_state[0].trace, gradient, 3e-5)
        assert_close(parameters(state.online), params, 3e-5)
        assert_close((statistics(state.online), statistics(state.target)), stats, 1e-5)
        followed = jax.tree.map(
            lambda old, new: 0.9 * old + 0.1 * new,
            parameters(before.target),
            {name: params[name] for name in before.target},
        )
        assert_close(parameters(state.target), followed, 1e-5)


@pytest.mark.parametrize('objective', slow_but(('tcr',), KINDS[:2]))
def test_parts_that_are_alike_give_the_step_of_the_whole_batch(objective, patches):
    twice = np.repeat(patches[: IMAGES // PARTS], PARTS, axis=0)  # so a part has one of each
    whole, expected = one_step(objective, 1, twice, augment=plain, accumulate=1)
    state, metrics = one_step(objective, 1, twice, augment=plain)
    chex.assert_trees_all_close(metrics, expected, rtol=2e-5)
    assert_close(state.opt_state[0].trace, whole.opt_state[0].trace, 5e-5)
    assert_close(parameters(state.online), parameters(whole.online), 5e-5)
    # Running statistics move by a tenth of what is left, in each part.
    before, once, two_times = (statistics(s.online) for s in (fresh_state(objective), whole, state))
    moved = jax.tree.map(lambda old, new: old + 1.9 * (new - old), before, once)
    assert_close(two_times, moved, 5e-5)


@pytest.mark.slow
def test_spread_in_parts(patches):
    before = fresh_state('tcr')
    _, _, outputs, _ = by_plain_differentiation('tcr', before, patches)
    chosen = options(8, CHANGED, PARTS)
    inputs = {'patches': jax.device_put(patches, batch_sharded(chosen['mesh']))}
    state = jax.device_put(before, replicated(chosen['mesh']))
    measured = make_spread_step(networks_for('tcr'), **chosen)(state, inputs)
    for space, name in (('h', 'encoder'), ('z', 'projector')):
        expected = spread(outputs[name].reshape(IMAGES * PATCHES, -1))
        for sign, value in expected.items():
            np.testing.assert_allclose(measured[f'{space}_{sign}'], value, rtol=1e-3)


@functools.cache
def compiled_resnet(step, devices, accumulate):
    """The 'train' or 'spread' step of a small ResNet on 64 images x 2 patches, compiled."""
    encoder = resnet(
        (1, 1, 1, 1), width=8, stem='cifar', zero_init_last=False, dtype=jnp.float32, mean=HALF,
        std=HALF,
    )  # fmt: skip
    networks = networks_for('vicreg', encoder)
    chosen = options(devices, plain, accumulate)
    mesh = chosen['mesh']
    shapes = jax.eval_shape(lambda: create_state(networks, SGD, 0, side=16))
    shape = 64, 2, 16, 16, 3
    inputs = jax.ShapeDtypeStruct(shape, np.uint8, sharding=batch_sharded(mesh))
    if step == 'train':
        function = make_step('vicreg', chosen, encoder)
    else:
        function = make_spread_step(networks, **chosen)
    shapes = sharded_shapes(shapes, replicated(mesh))
    return function.lower(shapes, {'patches': inputs}).compile(), shapes.params


@pytest.mark.parametrize('step', slow_but(('spread',), ('train', 'spread')))
def test_the_memory_is_that_of_a_part(step):
    whole, in_four = (
        compiled_resnet(step, 1, parts)[0].memory_analysis().temp_size_in_bytes for parts in (1, 4)
    )
    assert in_four < 0.45 * whole


@pytest.mark.slow
def test_gradients_are_sent_once_a_step():
    compiled, params = compiled_resnet('train', 8, 4)
    gradients = sum(leaf.size * 4 for leaf in jax.tree.leaves(params))
    in_loops, once = map(collective_bytes, compiled.as_text().split('\nENTRY '))
    assert gradients < once['all-reduce'] < 1.1 * gradients
    assert 0 < in_loops['all-reduce'] < 0.1 * gradients  # BatchNorm's, forwards and back


def test_parts_take_every_so_manieth_image():
    x = jnp.arange(12.0).reshape(6, 2)

    def function(carry, part):
        return (carry[0] + 1, carry[1] * 10 + part[0, 0]), {'y': part * carry[0], 'z': part[:, 0]}

    (count, seen), results = in_parts(function, (1, 0.0), x, 3)
    assert (count, seen) == (4, 24)  # parts begin with the images 0, 1 and 2: with 0, 2 and 4
    np.testing.assert_array_equal(results['z'], x[:, 0])
    np.testing.assert_array_equal(results['y'], x * jnp.array([[1], [2], [3]] * 2))
    assert in_parts(lambda *arguments: arguments, 'carry', 'batch', 1) == ('carry', 'batch')


def test_what_a_function_closes_over_gets_the_gradient_of_all_parts():
    x = jnp.arange(6.0)

    def loss(weight, parts):
        _, y = in_parts(lambda carry, part: (weight * carry, weight * part), 1.0, x, parts)
        return jnp.sum(y) ** 2  # which does not split over the parts

    assert jax.grad(loss)(0.5, 3) == jax.grad(loss)(0.5, 1) == 225  # 2 w (sum x)^2
