"""How far to go along a step of softmax regression, whose loss is convex in the distance."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def line_search(
    derivatives: Callable[[ArrayLike], tuple[jax.Array, jax.Array]],
    penalty_slope: ArrayLike,
    penalty_curvature: ArrayLike,
    max_trials: int = 20,
) -> jax.Array:
    """The size of a step that leaves at most a tenth of the objective's slope along it.

    The objective is convex in the size, so Newton's method on the slope inside a bracket finds
    it, and unlike differences of the objective the slope keeps its precision near the optimum.
    The size is 0 where the step leads uphill.

    Args:
      derivatives: size -> slope and curvature of the loss along the step.
      penalty_slope: of a quadratic penalty that is added to the loss, at size 0.
      penalty_curvature: of the same penalty.
      max_trials: after so many the largest size that is known to be too small is taken.
    """

    def penalised(size):
        slope, curvature = derivatives(size)
        return slope + penalty_slope + size * penalty_curvature, curvature + penalty_curvature

    first, _ = penalised(0.0)

    def unfinished(state):
        trial, (_, _, _, slope, _) = state
        return (jnp.abs(slope) > 0.1 * jnp.abs(first)) & (trial < max_trials)

    def attempt(state):
        trial, (low, high, size, slope, curvature) = state
        low, high = jnp.where(slope < 0, size, low), jnp.where(slope < 0, high, size)
        newton = size - slope / curvature
        inside = (low < newton) & (newton < jnp.minimum(high, 10 * size))
        size = jnp.where(inside, newton, jnp.where(jnp.isinf(high), 10 * size, (low + high) / 2))
        return trial + 1, (low, high, size, *penalised(size))

    state = jax.lax.while_loop(unfinished, attempt, (0, (0.0, jnp.inf, 1.0, *penalised(1.0))))
    low, _, size, _, _ = state[1]
    # Out of trials, or a direction that rounding turned uphill: the end that cannot do harm.
    return jnp.where(unfinished((0, state[1])) | (first >= 0), low * (first < 0), size)


def cross_entropy_derivatives(
    over_rows: Callable[..., Any],
    logits: jax.Array,
    step: jax.Array,
    labels: jax.Array,
    size: ArrayLike,
) -> tuple[jax.Array, jax.Array]:
    """Slope and curvature in `size` of the mean cross-entropy of logits + size * step.

    Args:
      over_rows: sums function(fresh, *rows) over parts of the rows that it is given, as
        over_rows(function, *arrays); `fresh`, float [r], is 0 for rows that do not count.
      logits, step: float32 [n c].
      labels: int [n].
      size: a scalar.
    """

    def of_rows(fresh, logits, step, labels):
        probabilities = jax.nn.softmax(logits + size * step)
        mean = (probabilities * step).sum(1, keepdims=True)
        slopes = ((probabilities - jax.nn.one_hot(labels, step.shape[1])) * step).sum(1)
        curvatures = (probabilities * (step - mean) ** 2).sum(1)
        return jnp.sum(fresh * slopes), jnp.sum(fresh * curvatures)

    slope, curvature = over_rows(of_rows, logits, step, labels)
    return slope / len(logits), curvature / len(logits)
