import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from bagssl_jax.collapse import spread
from bagssl_jax.errors import InputError
from bagssl_jax.objectives import OBJECTIVES, make_objective
from bagssl_jax.objectives.tcr import tcr
from bagssl_jax.objectives.vicreg import vicreg
from bagssl_jax.parallel import DATA_AXIS, make_mesh

NAMES = sorted(OBJECTIVES)


def vicreg_reference(z):
    """facebookresearch/vicreg, main_vicreg.py, for every pair of branches, in float64."""
    b, p, k = z.shape
    branches = [z[:, i] for i in range(p)]
    repr_losses, std_losses, cov_losses = [], [], []
    for i in range(p):
        for j in range(p):
            if i == j:
                continue
            x, y = branches[i], branches[j]
            repr_losses.append(((x - y) ** 2).mean())
            x, y = x - x.mean(axis=0), y - y.mean(axis=0)
            std_x, std_y = (
                np.sqrt(x.var(axis=0, ddof=1) + 1e-4),
                np.sqrt(y.var(axis=0, ddof=1) + 1e-4),
            )
            std_losses.append(
                np.maximum(1 - std_x, 0).mean() / 2 + np.maximum(1 - std_y, 0).mean() / 2
            )
            cov_x, cov_y = x.T @ x / (b - 1), y.T @ y / (b - 1)
            off = ~np.eye(k, dtype=bool)
            cov_losses.append((cov_x[off] ** 2).sum() / k + (cov_y[off] ** 2).sum() / k)
    terms = {
        'invariance': np.mean(repr_losses),
        'variance': np.mean(std_losses),
        'covariance': np.mean(cov_losses),
    }
    return 25 * terms['invariance'] + 25 * terms['variance'] + terms['covariance'], terms


def tcr_reference(z, eps=0.2):
    """tsb0601/EMP-SSL, main.py and func.py (cal_TCR, Similarity_Loss), in float64."""
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    b, p, k = z.shape
    mean = z.mean(axis=1)
    mean /= np.linalg.norm(mean, axis=-1, keepdims=True)
    similarity = np.mean([np.mean(np.sum(z[:, i] * mean, axis=-1)) for i in range(p)])
    rates = []
    for i in range(p):
        w = z[:, i].T  # [k b], as the authors pass it
        scalar = k / (b * eps)
        rates.append(np.linalg.slogdet(np.eye(k) + scalar * w @ w.T)[1] / 2)
    coding_rate = np.mean(rates)
    return -200 * similarity - coding_rate, {'similarity': similarity, 'coding_rate': coding_rate}


REFERENCES = {'vicreg': vicreg_reference, 'tcr': tcr_reference}


def random_bags(patches, images=12, width=6, seed=0):
    """Bags whose patches resemble one another, float32 [b p k]."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(images, 1, width))
    return (image + 0.5 * rng.normal(size=(images, patches, width))).astype(np.float32)


@pytest.mark.parametrize('patches', [2, 3, 8])
@pytest.mark.parametrize('name', NAMES)
def test_equals_the_reference(name, patches):
    z = random_bags(patches)
    loss, terms = make_objective(name, {})(jnp.asarray(z))
    expected, expected_terms = REFERENCES[name](z.astype(np.float64))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert terms.keys() == expected_terms.keys()
    for term, value in expected_terms.items():
        np.testing.assert_allclose(terms[term], value, rtol=1e-5)


def test_vicreg_by_hand():
    # Two images, two patches, two dimensions. Branch 1: (0, 0), (2, 2); branch 2: (0, 0), (2, 0).
    z = jnp.array([[[0.0, 0.0], [0.0, 0.0]], [[2.0, 2.0], [2.0, 0.0]]])
    _, terms = vicreg(z)
    # One pair of four coordinates differs, by 2: 4 / 4.
    np.testing.assert_allclose(terms['invariance'], 1.0)
    # Variances (b - 1 = 1): 2, 2 and 2, 0; one hinge of four is open, 1 - sqrt(1e-4) = 0.99.
    np.testing.assert_allclose(terms['variance'], 0.99 / 4, rtol=1e-6)
    # Branch 1 has covariance 2 twice, branch 2 none: (4 + 4) / k = 4.
    np.testing.assert_allclose(terms['covariance'], 4.0)


def test_tcr_by_hand():
    # Both patches of image 1 along one axis, both of image 2 along the other.
    z = jnp.array([[[3.0, 0.0], [1.0, 0.0]], [[0.0, 2.0], [0.0, 5.0]]])
    loss, terms = tcr(z, eps=0.5)
    np.testing.assert_allclose(terms['similarity'], 1.0, rtol=1e-6)
    # I + 2 / (2 * 0.5) * I = 3 I, and half its logdet is log 3.
    np.testing.assert_allclose(terms['coding_rate'], np.log(3), rtol=1e-6)
    np.testing.assert_allclose(loss, -200 - np.log(3), rtol=1e-6)


@pytest.mark.parametrize('name', NAMES)
def test_gradient_equals_central_differences(name):
    z = random_bags(3, images=4, width=3)
    objective = make_objective(name, {})
    gradient = jax.grad(lambda z: objective(z)[0])(jnp.asarray(z))
    numeric = np.zeros_like(z, np.float64)
    for place in np.ndindex(*z.shape):
        moved = [z.astype(np.float64) for _ in range(2)]
        moved[0][place] += 1e-6
        moved[1][place] -= 1e-6
        numeric[place] = (REFERENCES[name](moved[0])[0] - REFERENCES[name](moved[1])[0]) / 2e-6
    np.testing.assert_allclose(gradient, numeric, rtol=1e-3, atol=1e-3 * abs(numeric).max())


@pytest.mark.parametrize('name', NAMES)
def test_a_step_from_half_collapsed_input_raises_the_effective_rank(name):
    z = random_bags(2, images=32, width=8)
    z[..., 4:] *= 0.05  # half of the dimensions are almost dead
    objective = make_objective(name, {'invariance_weight': 0.0})
    step = jax.jit(lambda z: z - 0.05 * jax.grad(lambda z: objective(z)[0])(z) * len(z))
    before, after = (spread(x.reshape(-1, 8))['effective_rank'] for x in (z, step(z)))
    assert after > before + 0.1


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('kind', ['all equal', 'rank one', 'dead dimension'])
def test_collapsed_input_is_finite_and_scores_worse(name, kind):
    scattered = random_bags(4, images=32, width=8)
    collapsed = {
        'all equal': np.ones_like(scattered),
        'rank one': scattered[..., :1] * np.ones(8, np.float32),
        'dead dimension': scattered * (np.arange(8) > 0).astype(np.float32),
    }[kind]
    # Pulling together is not in question here: compare what keeps images apart.
    objective = make_objective(name, {'invariance_weight': 0.0})
    losses, gradients = zip(
        *(
            jax.value_and_grad(lambda z: objective(z)[0])(jnp.asarray(z))
            for z in (scattered, collapsed)
        ),
        strict=True,
    )
    assert np.isfinite(gradients[1]).all()
    assert losses[0] < losses[1]


@pytest.mark.parametrize('name', NAMES)
def test_zero_input_is_finite(name):
    loss, gradient = jax.value_and_grad(lambda z: make_objective(name, {})(z)[0])(
        jnp.zeros((4, 2, 3))
    )
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize('name', NAMES)
def test_pulling_patches_apart_costs(name):
    near, far = random_bags(4), random_bags(4)
    near += 3 * (near.mean(axis=1, keepdims=True) - near) / 4
    term = {'vicreg': 'invariance', 'tcr': 'similarity'}[name]
    sign = {'vicreg': 1, 'tcr': -1}[name]
    values = [sign * make_objective(name, {})(jnp.asarray(z))[1][term] for z in (near, far)]
    assert values[0] < values[1]


@pytest.mark.parametrize('name', NAMES)
def test_sharded_loss_and_gradient_equal_the_unsharded(name):
    z = jnp.asarray(random_bags(3, images=16))
    objective = make_objective(name, {})
    mesh = make_mesh()
    assert mesh.size == 8
    sharded = jax.shard_map(
        functools.partial(objective, axis_name=DATA_AXIS),
        mesh=mesh,
        in_specs=P(DATA_AXIS),
        out_specs=P(),
    )
    for function in (lambda f: jax.jit(f)(z)[0], lambda f: jax.jit(jax.grad(lambda z: f(z)[0]))(z)):
        np.testing.assert_allclose(function(sharded), function(objective), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize('name', NAMES)
def test_bfloat16_input_is_computed_in_float32(name):
    z = jnp.asarray(random_bags(3)).astype(jnp.bfloat16)
    objective = make_objective(name, {})
    assert objective(z)[0].dtype == jnp.float32
    assert objective(z)[0] == objective(z.astype(jnp.float32))[0]


def test_unknown_objective_lists_the_known():
    with pytest.raises(InputError, match=r"'tcrr'.*tcr, vicreg"):
        make_objective('tcrr', {})
