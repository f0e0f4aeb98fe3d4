"""How far a step goes, from either side, and never uphill."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from bagssl_jax.probes.line_search import cross_entropy_derivatives, line_search


def slopes_along(step, penalty_curvature):
    """The slope, at any size, of two one-hot examples' loss along `step`, with a penalty."""
    targets = np.eye(2)

    def slope(size):
        p = scipy.special.softmax(size * step, axis=1)
        return ((p - targets) * step).sum(1).mean() + size * penalty_curvature

    return slope


def searched(step, penalty_curvature):
    logits, labels = jnp.zeros((2, 2)), jnp.array([0, 1])

    def over_rows(function, *arrays):
        return function(jnp.ones(2), *arrays)

    derivatives = functools.partial(
        cross_entropy_derivatives, over_rows, logits, jnp.asarray(step), labels
    )
    return float(line_search(derivatives, 0.0, penalty_curvature))


@pytest.mark.parametrize('length', [1e-4, 1.0, 1e4])  # far too short, about right, far too long
def test_line_search_meets_its_slope_from_either_side(length):
    step, penalty = length * (2 * np.eye(2) - 1), 1e-3 * length**2
    size, slope = searched(step, penalty), slopes_along(step, penalty)
    assert size > 0
    assert abs(slope(size)) <= 0.1 * abs(slope(0.0))


def test_line_search_does_not_move_uphill():
    assert searched(1 - 2 * np.eye(2), 0.1) == 0
