import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bagssl_jax.errors import InputError
from bagssl_jax.training.optimizers import (
    OPTIMIZERS,
    cosine_momentum,
    make_optimizer,
    warmup_cosine,
)

PARAMS = {'kernel': jnp.array([[3.0, 4.0]]), 'bias': jnp.array([2.0])}
GRADS = {'kernel': jnp.array([[0.6, 0.8]]), 'bias': jnp.array([0.5])}
SETTINGS = {
    'sgd': {'momentum': 0.9},
    'lars': {'momentum': 0.9, 'trust_coefficient': 0.001},
    'lars_vicreg': {'momentum': 0.9, 'trust_coefficient': 0.001},
    'larc': {'momentum': 0.9, 'trust_coefficient': 0.5},
    'adamw': {},
}


def first_update(name, params=PARAMS, grads=GRADS, settings=None):
    schedule = optax.constant_schedule(0.5)
    settings = settings or SETTINGS.get(name, {})
    optimizer = make_optimizer(name, settings, schedule, weight_decay=0.1)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    return updates


def test_sgd_is_nesterov_and_decays_kernels_alone():
    updates = first_update('sgd')
    # Nesterov's first step is (1 + momentum) times the gradient.
    decayed = GRADS['kernel'] + 0.1 * PARAMS['kernel']
    np.testing.assert_allclose(updates['kernel'], -0.5 * 1.9 * decayed, rtol=1e-6)
    np.testing.assert_allclose(updates['bias'], -0.5 * 1.9 * GRADS['bias'], rtol=1e-6)


def test_lars_scales_kernels_by_their_trust_ratio_and_leaves_biases():
    updates = first_update('lars')
    decayed = GRADS['kernel'] + 0.1 * PARAMS['kernel']  # (0.9, 1.2), of norm 1.5; |kernel| = 5
    np.testing.assert_allclose(updates['kernel'], -0.5 * 1.9 * 0.001 * 5 / 1.5 * decayed, rtol=1e-5)
    np.testing.assert_allclose(updates['bias'], -0.5 * 1.9 * GRADS['bias'], rtol=1e-6)


def test_vicregs_lars_is_not_nesterovs():
    updates = first_update('lars_vicreg')
    decayed = GRADS['kernel'] + 0.1 * PARAMS['kernel']
    np.testing.assert_allclose(updates['kernel'], -0.5 * 0.001 * 5 / 1.5 * decayed, rtol=1e-5)
    np.testing.assert_allclose(updates['bias'], -0.5 * GRADS['bias'], rtol=1e-6)


def test_simclrs_lars_is_not_nesterovs():
    nesterov = first_update('lars')
    plain = first_update('lars', settings={**SETTINGS['lars'], 'nesterov': False})
    for name, update in plain.items():
        np.testing.assert_allclose(1.9 * update, nesterov[name], rtol=1e-6)


def test_barlow_twins_biases_have_a_rate_of_their_own():
    alike = first_update('lars_vicreg')
    own = first_update('lars_vicreg', settings={**SETTINGS['lars_vicreg'], 'bias_factor': 0.024})
    np.testing.assert_array_equal(own['kernel'], alike['kernel'])
    np.testing.assert_allclose(own['bias'], 0.024 * alike['bias'], rtol=1e-6)


@pytest.mark.parametrize(('larger', 'ratio'), [(1, 1.0), (0.01, 0.05 / 100.005)])
def test_larc_takes_no_larger_steps_than_the_learning_rate(larger, ratio):
    params = {**PARAMS, 'kernel': larger * PARAMS['kernel']}
    updates = first_update('larc', params, {**GRADS, 'kernel': GRADS['kernel'] / larger})
    decayed = GRADS['kernel'] / larger + 0.1 * params['kernel']
    np.testing.assert_allclose(updates['kernel'], -0.5 * 1.9 * ratio * decayed, rtol=1e-5)
    np.testing.assert_allclose(updates['bias'], -0.5 * 1.9 * GRADS['bias'], rtol=1e-6)


def test_larc_leaves_a_gradient_of_zeros():
    grads = {**GRADS, 'kernel': jnp.zeros_like(GRADS['kernel'])}
    assert not np.any(first_update('larc', grads=grads)['kernel'])


def test_adamw_decays_kernels_alone():
    updates = first_update('adamw')
    # Adam's first step is the sign of the gradient; the decay is decoupled from it.
    np.testing.assert_allclose(updates['kernel'], -0.5 * (1 + 0.1 * PARAMS['kernel']), rtol=1e-4)
    np.testing.assert_allclose(updates['bias'], [-0.5], rtol=1e-4)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_what_is_no_kernel_is_neither_decayed_nor_scaled(name):
    params = {'pos_embedding': jnp.full((1, 2, 3), 4.0), 'scale': jnp.full((3,), 4.0)}
    grads = {'pos_embedding': jnp.full((1, 2, 3), 0.25), 'scale': jnp.full((3,), 0.25)}
    updates = first_update(name, params, grads)
    # Adam's first step is the sign of the gradient, Nesterov's (1 + momentum) times it, and that of
    # other momentum the gradient.
    expected = -0.5 * {'adamw': 1.0, 'lars_vicreg': 0.25}.get(name, 1.9 * 0.25)
    for update in updates.values():
        np.testing.assert_allclose(update, np.full(update.shape, expected), rtol=1e-4)


def test_unknown_optimizer_lists_the_known():
    with pytest.raises(InputError, match="'adam': choose from sgd, lars, lars_vicreg, larc, adamw"):
        first_update('adam')


def test_schedule_warms_up_linearly_and_ends_as_a_cosine():
    schedule = warmup_cosine(peak=2.0, total_steps=50, warmup_steps=10, end_factor=0.1)
    np.testing.assert_allclose([schedule(i) for i in (0, 5, 10)], [0.0, 1.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose(schedule(30), (2.0 + 0.2) / 2, rtol=1e-6)
    np.testing.assert_allclose(schedule(50), 0.2, rtol=1e-6)


def test_without_warmup_the_first_step_has_the_peak():
    schedule = warmup_cosine(peak=2.0, total_steps=50, warmup_steps=0, end_factor=0.0)
    np.testing.assert_allclose(schedule(0), 2.0)


def test_a_warmup_as_long_as_the_training_is_refused():
    with pytest.raises(InputError, match=r'optimizer.warmup_epochs'):
        warmup_cosine(peak=1.0, total_steps=5, warmup_steps=5, end_factor=0.0)


def test_momentum_rises_to_one_along_a_cosine():
    momentum = cosine_momentum(0.996, 100)
    # 1 - 0.004 (cos(pi step / 100) + 1) / 2
    np.testing.assert_allclose(
        [momentum(step) for step in (0, 25, 50, 100)],
        [0.996, 0.99658579, 0.998, 1.0],
        rtol=1e-6,
    )
