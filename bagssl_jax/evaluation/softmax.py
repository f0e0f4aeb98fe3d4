"""Multinomial logistic regression to its optimum, for many regularisations at once."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

# TF32 (GPU) and bfloat16 (TPU) products would end the descent far from the optimum.
_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class SoftmaxFit(NamedTuple):
    """Optima of the objective of `fit_softmax`, one for each l2."""

    weights: jax.Array  # float32 [s d c]
    bias: jax.Array  # float32 [s c]
    loss: jax.Array  # float32 [s], the objective
    gradient_norm: jax.Array  # float32 [s], of the objective, over weights and bias
    iterations: jax.Array  # int32 [s]


@functools.partial(jax.jit, static_argnames=('num_classes', 'max_iterations'))
def fit_softmax(
    features: ArrayLike,
    labels: ArrayLike,
    l2: ArrayLike,
    *,
    num_classes: int,
    max_iterations: int = 300,
    tolerance: float = 1e-5,
) -> SoftmaxFit:
    """Minimises, for each l2, mean_i CE(features_i W + bias, label_i) + l2 / 2 * sum(W**2).

    CE is the softmax cross-entropy in nats; the bias is not penalised. Full-batch L-BFGS (Nocedal
    and Wright, Numerical Optimization, algorithm 7.4) from zero, for all l2 at once, with:

    - coordinates in which the Hessian at zero is the identity: the features' principal axes, each
      divided by the root of its curvature. Rotation leaves the penalty as it is. The features of
      an encoder are so correlated that plain L-BFGS needs several times the iterations.
    - a line search on the logits, which are linear in the step: it costs no product with the
      features, where optax.lbfgs's search (under vmap, both sides of its cond) costs four a trial.

    About six arrays [s n c] are held at once, and two of the features' size.

    Args:
      features: float32 [n d], of mean zero, or the coordinates above are poor.
      labels: integer [n].
      l2: float32 [s], positive.
      num_classes: c.
      max_iterations: an end for what does not reach the tolerance.
      tolerance: on the gradient's norm in the coordinates above. Half its square estimates the
        excess of the loss; where the classes are separable and l2 tiny, the Hessian is far
        below its value at zero and the excess larger, a few 1e-6 nats with the default.
    """
    features = jnp.asarray(features, jnp.float32)
    targets = jax.nn.one_hot(labels, num_classes)
    curvature, axes = jnp.linalg.eigh(_matmul(features.T, features) / len(features))
    rotated = _matmul(features, axes)
    # At zero every class has probability 1 / c, hence these.
    bias_scale = num_classes**0.5
    lbfgs = optax.scale_by_lbfgs(memory_size=10)

    def fit(l2):
        scale = jax.lax.rsqrt(jnp.maximum(curvature, 0.0) / num_classes + l2)[:, None]

        def gradient(parameters, logits):
            errors = (jax.nn.softmax(logits) - targets) / len(features)
            # Not rotated.T @ errors, for which XLA on CPU would copy the features, transposed.
            products = _matmul(errors.T, rotated).T
            weights = scale * parameters[0]
            return scale * (products + l2 * weights), bias_scale * errors.sum(0)

        def iterate(state):
            parameters, logits, grad, memory, iteration = state
            direction, memory = lbfgs.update(grad, memory, parameters)
            direction = jax.tree.map(jnp.negative, direction)
            weights, change = scale * parameters[0], scale * direction[0]
            step = _matmul(rotated, change) + bias_scale * direction[1][None]
            penalty_slope = l2 * jnp.vdot(weights, change)
            size = _line_search(logits, step, targets, penalty_slope, l2 * jnp.sum(change**2))
            parameters = optax.tree.add_scale(parameters, size, direction)
            logits = logits + size * step
            return parameters, logits, gradient(parameters, logits), memory, iteration + 1

        def unfinished(state):
            return (optax.tree.norm(state[2]) > tolerance) & (state[4] < max_iterations)

        start = jnp.zeros((features.shape[1], num_classes)), jnp.zeros(num_classes)
        logits = jnp.zeros_like(targets)
        state = start, logits, gradient(start, logits), lbfgs.init(start), 0
        (weights, bias), _, _, _, iterations = jax.lax.while_loop(unfinished, iterate, state)

        def objective(weights, bias):
            losses = optax.softmax_cross_entropy(_matmul(features, weights) + bias[None], targets)
            return losses.mean() + l2 / 2 * jnp.sum(weights**2)

        weights, bias = _matmul(axes, scale * weights), bias_scale * bias
        loss, grad = jax.value_and_grad(objective, argnums=(0, 1))(weights, bias)
        return SoftmaxFit(weights, bias, loss, optax.tree.norm(grad), iterations)

    return jax.vmap(fit)(l2)


def _line_search(logits, step, targets, penalty_slope, penalty_curvature, max_trials=20):
    """The size of a step that leaves at most a tenth of the objective's slope along it.

    The objective is convex in the size, so Newton's method on the slope inside a bracket finds
    it, and unlike differences of the objective the slope keeps its precision near the optimum.
    """

    def derivatives(size):
        probabilities = jax.nn.softmax(logits + size * step)
        mean = (probabilities * step).sum(1, keepdims=True)
        slope = ((probabilities - targets) * step).sum(1).mean()
        curvature = (probabilities * (step - mean) ** 2).sum(1).mean()
        return slope + penalty_slope + size * penalty_curvature, curvature + penalty_curvature

    first, _ = derivatives(0.0)

    def unfinished(state):
        trial, (_, _, _, slope, _) = state
        return (jnp.abs(slope) > 0.1 * jnp.abs(first)) & (trial < max_trials)

    def attempt(state):
        trial, (low, high, size, slope, curvature) = state
        low, high = jnp.where(slope < 0, size, low), jnp.where(slope < 0, high, size)
        newton = size - slope / curvature
        inside = (low < newton) & (newton < jnp.minimum(high, 10 * size))
        size = jnp.where(inside, newton, jnp.where(jnp.isinf(high), 10 * size, (low + high) / 2))
        return trial + 1, (low, high, size, *derivatives(size))

    state = jax.lax.while_loop(unfinished, attempt, (0, (0.0, jnp.inf, 1.0, *derivatives(1.0))))
    low, _, size, _, _ = state[1]
    # Out of trials, or a direction that rounding turned uphill: the end that cannot do harm.
    return jnp.where(unfinished((0, state[1])) | (first >= 0), low * (first < 0), size)
