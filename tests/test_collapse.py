import jax.numpy as jnp
import numpy as np
import pytest

from bagssl_jax.training.collapse import spread


def test_equal_spread_along_every_dimension_has_full_rank():
    x = np.concatenate([np.eye(6), -np.eye(6)]) * 3
    measured = spread(jnp.asarray(x + 100))
    np.testing.assert_allclose(measured['effective_rank'], 6, rtol=1e-3)
    np.testing.assert_allclose(measured['std'], 3 * np.sqrt(1 / 6), rtol=1e-4)


def test_is_the_entropy_of_the_singular_values():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 5)) * [1, 2, 3, 4, 5]
    singular = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    share = singular / singular.sum()
    expected = np.exp(-(share * np.log(share)).sum())
    np.testing.assert_allclose(spread(jnp.asarray(x))['effective_rank'], expected, rtol=1e-4)


@pytest.mark.parametrize('rank', [1, 3])
def test_never_more_than_the_rank(rank):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(64, rank)) @ rng.normal(size=(rank, 16))
    assert spread(jnp.asarray(x))['effective_rank'] < rank + 0.01


def test_total_collapse_is_zero():
    measured = spread(jnp.full((8, 4), 2.5))
    assert measured['effective_rank'] == 0
    assert measured['std'] == 0
