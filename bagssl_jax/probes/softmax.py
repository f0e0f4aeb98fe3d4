"""Multinomial logistic regression to its optimum, for many regularisations at once."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from bagssl_jax.errors import InputError
from bagssl_jax.probes.line_search import cross_entropy_derivatives, line_search
from bagssl_jax.probes.memory import device_bytes

# TF32 (GPU) and bfloat16 (TPU) products would end the descent far from the optimum.
_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

_ARRAYS = 4  # [n c] held at once by each fit: the logits, their change, and the loop's copies


class SoftmaxFit(NamedTuple):
    """Optima of the objective of `fit_softmax`, one for each l2."""

    weights: jax.Array  # float32 [s d c]
    bias: jax.Array  # float32 [s c]
    loss: jax.Array  # float32 [s], the objective
    gradient_norm: jax.Array  # float32 [s], of the objective, over weights and bias
    iterations: jax.Array  # int32 [s]


@functools.partial(
    jax.jit, static_argnames=('num_classes', 'max_iterations', 'chunk', 'memory_limit')
)
def fit_softmax(
    features: ArrayLike,
    labels: ArrayLike,
    l2: ArrayLike,
    *,
    num_classes: int,
    max_iterations: int = 300,
    tolerance: float = 1e-5,
    chunk: int | None = None,
    memory_limit: int | None = None,
) -> SoftmaxFit:
    """Minimises, for each l2, mean_i CE(features_i W + bias, label_i) + l2 / 2 * sum(W**2).

    CE is the softmax cross-entropy in nats; the bias is not penalised. Full-batch L-BFGS (Nocedal
    and Wright, Numerical Optimization, algorithm 7.4) from zero, with:

    - coordinates in which the Hessian at zero is the identity: the features' principal axes, each
      divided by the root of its curvature. Rotation leaves the penalty as it is. The features of
      an encoder are so correlated that plain L-BFGS needs several times the iterations.
    - a line search on the logits, which are linear in the step: it costs no product with the
      features, where optax.lbfgs's search (under vmap, both sides of its cond) costs four a trial.

    In memory are, in float32, the features once, and for each l2 that is fitted at a time four
    arrays [n c] and L-BFGS's own 22 arrays [d c]; all l2 go at once where that fits into
    `memory_limit`, else one after another, to the same optima.

    Args:
      features: float32 [n d], of mean zero, or the coordinates above are poor.
      labels: integer [n].
      l2: float32 [s], positive.
      num_classes: c.
      max_iterations: an end for what does not reach the tolerance.
      tolerance: on the gradient's norm in the coordinates above. Half its square estimates the
        excess of the loss; where the classes are separable and l2 tiny, the Hessian is far
        below its value at zero and the excess larger, a few 1e-6 nats with the default.
      chunk: rows whose probabilities are held at once; by default as many as make 64 MiB.
      memory_limit: bytes; by default nine tenths of what one device holds.

    Raises:
      InputError: not even one fit is within the limit.
    """
    features, labels = jnp.asarray(features, jnp.float32), jnp.asarray(labels)
    (count, width), settings = features.shape, len(l2)
    at_once = _fits_at_once(count, width, num_classes, memory_limit or device_bytes() * 9 // 10)
    chunk = chunk or max(1, 2**24 // (num_classes * (settings if at_once >= settings else 1)))
    over_rows = functools.partial(_sum_over_rows, chunk)
    curvature, axes = jnp.linalg.eigh(_matmul(features.T, features) / count)
    # At zero every class has probability 1 / c, hence these.
    bias_scale = num_classes**0.5
    lbfgs = optax.scale_by_lbfgs(memory_size=10)

    def fit(l2):
        scale = jax.lax.rsqrt(jnp.maximum(curvature, 0.0) / num_classes + l2)[:, None]

        def original(parameters):
            return _matmul(axes, scale * parameters[0]), bias_scale * parameters[1]

        def gradient(weights, logits):
            def of_rows(fresh, logits, labels, features):
                targets = jax.nn.one_hot(labels, num_classes)
                errors = fresh[:, None] * (jax.nn.softmax(logits) - targets)
                # Not features.T @ errors, for which XLA on CPU would copy them, transposed.
                return _matmul(errors.T, features), errors.sum(0)

            products, sums = over_rows(of_rows, logits, labels, features)
            return products.T / count + l2 * weights, sums / count

        def scaled_gradient(parameters, logits):
            weights, bias = gradient(original(parameters)[0], logits)
            return scale * _matmul(axes.T, weights), bias_scale * bias

        def iterate(state):
            parameters, logits, grad, memory, iteration = state
            direction, memory = lbfgs.update(grad, memory, parameters)
            direction = jax.tree.map(jnp.negative, direction)
            weights, _ = original(parameters)
            change, bias_change = original(direction)
            step = _matmul(features, change) + bias_change[None]
            derivatives = functools.partial(
                cross_entropy_derivatives, over_rows, logits, step, labels
            )
            penalty_slope = l2 * jnp.vdot(weights, change)
            size = line_search(derivatives, penalty_slope, l2 * jnp.sum(change**2))
            parameters = optax.tree.add_scale(parameters, size, direction)
            logits = logits + size * step
            return parameters, logits, scaled_gradient(parameters, logits), memory, iteration + 1

        def unfinished(state):
            return (optax.tree.norm(state[2]) > tolerance) & (state[4] < max_iterations)

        start = jnp.zeros((width, num_classes)), jnp.zeros(num_classes)
        logits = jnp.zeros((count, num_classes))
        state = start, logits, scaled_gradient(start, logits), lbfgs.init(start), 0
        parameters, _, _, _, iterations = jax.lax.while_loop(unfinished, iterate, state)

        # Not the logits of the descent, which have added up the rounding of every step.
        weights, bias = original(parameters)
        logits = _matmul(features, weights) + bias[None]
        loss = over_rows(_cross_entropies, logits, labels) / count + l2 / 2 * jnp.sum(weights**2)
        return SoftmaxFit(
            weights, bias, loss, optax.tree.norm(gradient(weights, logits)), iterations
        )

    l2 = jnp.asarray(l2, jnp.float32)
    return jax.vmap(fit)(l2) if at_once >= settings else jax.lax.map(fit, l2)


def _fits_at_once(count: int, width: int, num_classes: int, limit: int) -> int:
    shared, each = 4 * count * width, 4 * num_classes * (_ARRAYS * count + 22 * width)
    if shared + each > limit:
        raise InputError(
            f'L-BFGS on {count} x {width} features and {num_classes} classes needs '
            f'{(shared + each) / 1e9:.0f} GB, of {limit / 1e9:.0f} there are: use the SGD '
            'protocol, which goes by batches'
        )
    return (limit - shared) // each


def _sum_over_rows(chunk: int, function: Callable[..., Any], *arrays: jax.Array) -> Any:
    """The sum of function(fresh, *rows) over chunks of rows; `fresh` [r] is 0 for rows to skip."""
    count = len(arrays[0])
    if count <= chunk:
        return function(jnp.ones(count), *arrays)

    def of_chunk(i):
        # The last chunk reaches back to be whole: padded arrays would be copies of them.
        start = jnp.minimum(i * chunk, count - chunk)
        fresh = start + jnp.arange(chunk) >= i * chunk
        rows = [jax.lax.dynamic_slice_in_dim(array, start, chunk) for array in arrays]
        return function(fresh.astype(jnp.float32), *rows)

    def add(i, total):
        return jax.tree.map(jnp.add, total, of_chunk(i))

    return jax.lax.fori_loop(1, -(-count // chunk), add, of_chunk(0))


def _cross_entropies(fresh, logits, labels):
    targets = jax.nn.one_hot(labels, logits.shape[1])
    return jnp.sum(fresh * optax.softmax_cross_entropy(logits, targets))
