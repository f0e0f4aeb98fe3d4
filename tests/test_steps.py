import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import slow_but

from bagssl_jax.augment import augment
from bagssl_jax.models import Networks, make_encoder, make_projector
from bagssl_jax.objectives import OBJECTIVES, Objective, make_objective
from bagssl_jax.parallel import batch_sharded, make_mesh, replicated
from bagssl_jax.training.optimizers import cosine_momentum
from bagssl_jax.training.state import create_state
from bagssl_jax.training.steps import make_spread_step, make_train_step

OBJECTIVE_NAMES = sorted(OBJECTIVES)
# Little of it, as it compiles for longer than the networks.
JITTER = functools.partial(augment, jitter=0, grey=0.3, solarize=0.3)


def plain(key, patches, places):
    """No augmentation: [n h w c] uint8 -> float in [0, 1]."""
    del key, places
    return patches.astype(jnp.float32) / 255


@pytest.fixture(scope='module')
def patches():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 180, (16, 1, 1, 1, 3))
    return (image + rng.integers(0, 76, (16, 3, 8, 8, 3))).astype(np.uint8)


def networks_for(objective, dtype='float32'):
    encoder = make_encoder('tiny', {'width': 4}, dtype=dtype)
    predictor = make_projector(widths=(12, 8), dtype=dtype)
    return Networks(
        encoder,
        make_projector(widths=(16, 8), dtype=dtype),
        predictor if OBJECTIVES[objective].target else None,
    )


@functools.cache
def compiled(devices, objective, augment, learning_rate, dtype='float32', by_index=False):
    """The training step on the first `devices` devices, and a fresh state on the host."""
    optimizer = optax.sgd(learning_rate, momentum=0.9, nesterov=True)
    networks = networks_for(objective, dtype)
    step = make_train_step(
        networks,
        make_objective(objective, {}),
        optimizer,
        cosine_momentum(0.9, 10),
        cut=lambda patches: patches,
        augment=augment,
        key=jax.random.key(3),
        mesh=make_mesh(jax.devices()[:devices]),
        by_index=by_index,
    )
    return step, jax.device_get(create_state(networks, optimizer, 0, side=8))


def build(devices, objective, augment=JITTER, learning_rate=1e-3, dtype='float32', by_index=False):
    """A fresh state on the first `devices` devices, its step, and where its batches lie."""
    mesh = make_mesh(jax.devices()[:devices])
    step, state = compiled(devices, objective, augment, learning_rate, dtype, by_index)
    return jax.device_put(state, replicated(mesh)), step, batch_sharded(mesh)


def run(devices, objective, patches, steps=2, **options):
    state, step, sharding = build(devices, objective, **options)
    history = []
    for _ in range(steps):
        state, metrics = step(state, jax.device_put(patches, sharding))
        history.append(metrics)
    return jax.device_get((state, history))


# What objectives are on several devices is in tests/test_objectives.py; here, one at once, and
# all where there is time.
QUICK = ('tcr',)


@pytest.mark.parametrize('objective', slow_but(QUICK, OBJECTIVE_NAMES))
def test_eight_devices_equal_one(objective, patches):
    assert_eight_devices_equal_one(objective, patches)


@pytest.mark.slow
def test_eight_devices_equal_one_where_augmentation_differs_by_patch_index(patches):
    assert_eight_devices_equal_one('byol', patches, by_index=True)


def assert_eight_devices_equal_one(objective, patches, by_index=False):
    state, history = run(8, objective, patches, by_index=by_index)
    expected_state, expected_history = run(1, objective, patches, by_index=by_index)
    chex.assert_trees_all_close(history, expected_history, rtol=2e-5)
    assert jax.tree.structure(state) == jax.tree.structure(expected_state)
    for leaf, expected in zip(*map(jax.tree.leaves, (state, expected_state)), strict=True):
        # float32 rounding of sums is relative to the largest element, and absolute where the sum
        # is zero, as VICReg's gradient of the last bias is.
        scale = max(abs(expected).max(), 0.1)
        np.testing.assert_allclose(leaf, expected, rtol=0, atol=5e-5 * scale)


@pytest.mark.parametrize('objective', slow_but(('tcr',), ('tcr', 'vicreg')))
def test_eight_devices_have_the_gradient_of_one_plain_function(objective, patches):
    """Against autodiff of the whole batch without any sharding, to catch a factor of 8."""
    state, step, sharding = build(8, objective, plain, learning_rate=1.0)
    before = jax.device_get(state)
    after, metrics = step(state, jax.device_put(patches, sharding))

    def normalised(x):  # batch statistics by hand, so that nothing here is the step's own
        return (x - x.mean(0)) * jax.lax.rsqrt(x.var(0) + 1e-5)

    def loss(kernel, h):
        params = before.online['projector']['params']
        x = jnp.maximum(normalised(h @ params['dense1']['kernel']), 0)
        z = x @ kernel + params['dense2']['bias'].reshape(1, -1)
        return make_objective(objective, {}).loss(z.reshape(16, 3, -1))[0]

    kernel = before.online['projector']['params']['dense2']['kernel']

    @jax.jit
    def plainly():
        x = (jnp.asarray(patches, jnp.float32).reshape(-1, 8, 8, 3) / 255 - 0.5) / 0.5
        params = before.online['encoder']['params']
        for i in range(4):
            x = jax.lax.conv_general_dilated(
                x,
                params[f'conv{i + 1}']['kernel'],
                (1, 1) if i == 0 else (2, 2),
                [(1, 1), (1, 1)],
                dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            )
            flat = x.reshape(-1, x.shape[-1])
            x = jnp.maximum(normalised(flat), 0).reshape(x.shape)
        return jax.value_and_grad(loss)(kernel, x.mean(axis=(1, 2)))

    with jax.numpy_rank_promotion('allow'):
        value, gradient = plainly()
    np.testing.assert_allclose(metrics['loss'], value, rtol=1e-4)
    # Nesterov's first update is -(1 + momentum) times the gradient.
    moved = (after.online['projector']['params']['dense2']['kernel'] - kernel) / -1.9
    np.testing.assert_allclose(moved, gradient, rtol=1e-3, atol=1e-4 * abs(gradient).max())


def test_statistics_are_those_of_the_global_batch(patches):
    state, _ = run(8, 'vicreg', patches, steps=1, augment=plain, learning_rate=1.0)
    x = (patches.reshape(-1, 8, 8, 3) / 255 - 0.5) / 0.5
    initial, _, _ = build(1, 'vicreg')
    conv = jax.lax.conv_general_dilated(
        jnp.asarray(x, jnp.float32),
        initial.online['encoder']['params']['conv1']['kernel'],
        (1, 1),
        'SAME',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    stats = state.online['encoder']['batch_stats']['norm1']
    np.testing.assert_allclose(stats['mean'], 0.1 * conv.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stats['var'], 0.9 + 0.1 * conv.var(axis=(0, 1, 2)), rtol=1e-4)


def test_loss_falls_and_terms_are_named(patches):
    _, history = run(1, 'vicreg', patches, steps=12, augment=plain, learning_rate=0.02)
    assert history[0].keys() == {'loss', 'invariance', 'variance', 'covariance', 'gradient_norm'}
    assert history[-1]['loss'] < 0.8 * history[0]['loss']


def test_the_step_is_traced_once(patches):
    traces = []

    def counting(key, patches, places):
        traces.append(patches.shape)
        return plain(key, patches, places)

    run(2, 'tcr', patches, steps=3, augment=counting)
    assert len(traces) == 1


def test_augmentation_differs_between_steps(patches):
    losses = []
    for number in (0, 0, 1):
        state, step, sharding = build(1, 'tcr')
        state = state.replace(step=state.step + number)
        losses.append(float(step(state, jax.device_put(patches, sharding))[1]['loss']))
    assert losses[0] == losses[1] != losses[2]


def sliced(z, *, axis_name=None, key=None):
    """An objective that draws: how wide z lies along random directions."""
    directions = jax.random.normal(key, (z.shape[-1], 4))
    return jax.lax.pmean(jnp.mean((z @ directions) ** 2), axis_name), {'drawn': directions[0, 0]}


def sliced_steps(devices, patches, start):
    """The metrics of two steps on the same batch, without augmentation, and the state then."""
    networks = networks_for('tcr')
    optimizer = optax.sgd(1e-3)
    mesh = make_mesh(jax.devices()[:devices])
    step = make_train_step(
        networks,
        Objective(sliced),
        optimizer,
        cosine_momentum(0.9, 10),
        cut=lambda patches: patches,
        augment=plain,
        key=jax.random.key(3),
        mesh=mesh,
    )
    state = create_state(networks, optimizer, 0, side=8)
    state = jax.device_put(state.replace(step=state.step + start), replicated(mesh))
    history = []
    for _ in range(2):
        state, metrics = step(state, jax.device_put(patches, batch_sharded(mesh)))
        history.append(metrics)
    return jax.device_get((history, state.online))


@pytest.mark.slow
def test_an_objective_may_draw_the_same_on_all_devices_and_anew_in_every_step(patches):
    history, online = sliced_steps(8, patches, 0)
    expected_history, expected_online = sliced_steps(1, patches, 0)
    chex.assert_trees_all_close(history, expected_history, rtol=2e-5)
    chex.assert_trees_all_close(online, expected_online, rtol=2e-5, atol=2e-5)
    first, second = (metrics['drawn'] for metrics in history)
    assert first != second
    # What a step draws depends on its number alone.
    later, _ = sliced_steps(1, patches, 1)
    assert later[0]['drawn'] == second


def test_the_state_is_donated(patches):
    state, step, sharding = build(1, 'tcr')
    step(state, jax.device_put(patches, sharding))
    assert state.online['encoder']['params']['conv1']['kernel'].is_deleted()


def test_spread_is_of_the_global_batch(patches):
    measured = []
    for devices in (1, 8):
        state, _, sharding = build(devices, 'tcr')
        mesh = make_mesh(jax.devices()[:devices])
        measure = make_spread_step(
            networks_for('tcr'),
            cut=lambda patches: patches,
            augment=plain,
            key=jax.random.key(3),
            mesh=mesh,
        )
        measured.append(measure(state, jax.device_put(patches, sharding)))
    chex.assert_trees_all_close(*jax.device_get(measured), rtol=1e-3)
    assert measured[0].keys() == {'h_std', 'h_effective_rank', 'z_std', 'z_effective_rank'}
    assert 1 < measured[0]['h_effective_rank'] <= 32  # the embedding is 32 wide


# The networks compute in it, losses do not: with a target, of a softmax, and of a determinant.
@pytest.mark.slow
@pytest.mark.parametrize('objective', ['byol', 'simclr', 'tcr'])
def test_bfloat16_compute_agrees_to_its_precision(objective, patches):
    roundings, of_devices = [], []
    for batch in (patches, 255 - patches, patches[..., ::-1]):
        state, [metrics] = run(8, objective, batch, steps=1, dtype='bfloat16')
        assert {leaf.dtype for leaf in jax.tree.leaves(state.online)} == {jnp.dtype('float32')}
        expected_state, [expected] = run(1, objective, batch, steps=1, dtype='bfloat16')
        exact_state, [exact] = run(1, objective, batch, steps=1)
        assert metrics['loss'] != exact['loss']
        # bfloat16 has 8 significant bits; a few roundings add up.
        chex.assert_trees_all_close(metrics, expected, rtol=0.03, atol=0.003)
        chex.assert_trees_all_close(metrics['loss'], exact['loss'], rtol=0.03, atol=0.03)
        # After one step from rest the optimiser's state is the gradient.
        gradient, one_device, in_float32 = (
            jax.tree.leaves(s.opt_state) for s in (state, expected_state, exact_state)
        )
        rounding = distance(one_device, in_float32)
        roundings.append(rounding / optax.tree.norm(in_float32))
        of_devices.append(distance(gradient, one_device) / rounding)
    # Of random batches it is .03 to .34, and for some of them more: ReLUs change their minds. Eight
    # devices may change the gradient about as much as bfloat16 itself does.
    assert 0 < np.median(roundings) < 0.25
    assert np.median(of_devices) < 1.5


def distance(leaves, others):
    """The L2 norm of the difference of two lists of arrays."""
    return optax.tree.norm([a - b for a, b in zip(leaves, others, strict=True)])


def test_the_target_follows_by_its_momentum_and_gets_no_gradient(patches):
    before, step, sharding = build(8, 'byol')
    initial = jax.device_get(before)
    chex.assert_trees_all_equal(
        initial.target, {name: initial.online[name] for name in ('encoder', 'projector')}
    )
    batch = jax.device_put(patches, sharding)
    first = jax.device_get(step(before, batch)[0])
    second = jax.device_get(step(jax.device_put(first, replicated(make_mesh())), batch)[0])
    # 1 - (1 - 0.9) (cos(pi step / 10) + 1) / 2 at step 0 and 1
    for old, new, keep in ((initial, first, 0.9), (first, second, 0.9024471741852423)):
        for name in ('encoder', 'projector'):
            expected = jax.tree.map(
                lambda target, online, keep=keep: keep * target + (1 - keep) * online,
                old.target[name]['params'],
                new.online[name]['params'],
            )
            chex.assert_trees_all_close(new.target[name]['params'], expected, rtol=1e-5, atol=1e-7)
    assert second.online.keys() == {'encoder', 'projector', 'predictor'}


def test_most_objectives_have_neither_target_nor_predictor():
    state, _, _ = build(8, 'tcr')
    assert state.target == {}
    assert state.online.keys() == {'encoder', 'projector'}
